"""Hot numerics. Nothing here knows SAELens."""

from sae_lens_isae.ops.backends import Backend, use_backend

__all__ = ["Backend", "use_backend"]
