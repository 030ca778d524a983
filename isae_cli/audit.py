"""`isae audit`."""

from __future__ import annotations

from pathlib import Path

from isae_cli import options
from isae_cli.inputs import open_measured
from isae_cli.output import say_written


def audit(
    saes: options.SAEs,
    activations: options.Activations = None,
    model: options.Model = None,
    text: options.Text = None,
    samples: options.Samples = None,
    logits: options.Logits = False,
    out: options.Out = Path("audit_report"),
    device: options.Device = None,
    seed: options.Seed = 0,
    force: options.Force = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Which assumptions of the identifiability theory does an SAE meet on real
    activations?

    Measures every quantity of Theorem 3.6 of 'Toward Identifiable Sparse
    Autoencoders', says which assumption fails and whether the theorem's bounds
    mean anything; the coherence and self-consistency bounds; and the health of
    the dictionary. Several SAEs are also judged together, as the theorem speaks
    of two.

    \b
    Example:
      isae audit output/seed_0 --activations output/activations.safetensors
    """
    from sae_lens_isae.files import output_folder
    from sae_lens_isae.identifiability.audit import audit as run_audit

    with output_folder(out):
        loaded, source = open_measured(
            saes,
            activations,
            model=model,
            text=text,
            samples=samples,
            logits=logits,
            device=device,
            seed=seed,
            trust_remote_code=trust_remote_code,
        )
        report = run_audit(loaded, source, seed=seed, force=force)
        written = report.save(out)
    report.show()
    again = [] if activations is None else ["--activations", activations]
    say_written(written, ["isae", "recode", *saes, *again])
