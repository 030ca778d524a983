"""What is measured: SAEs as x = D z + b, their activations, the models and texts behind them.

`identifiability`, `recoding`, `saebench` and `cebench` measure what is opened here.
"""
