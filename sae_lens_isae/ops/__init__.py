"""Hot numerics. Nothing here knows SAELens."""
