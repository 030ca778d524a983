"""How identifiable trained SAEs are: agreement of seeds, and the assumptions of the theory."""

from __future__ import annotations

from sae_lens_isae.identifiability.audit import audit
from sae_lens_isae.identifiability.audit_report import AuditReport
from sae_lens_isae.identifiability.audit_results import Audit
from sae_lens_isae.identifiability.consensus import Consensus, consensus_sae, recurring_latents
from sae_lens_isae.identifiability.matching import DictionaryMatch, match_dictionaries
from sae_lens_isae.identifiability.pairwise import pairwise_identifiability
from sae_lens_isae.identifiability.pairwise_report import PairwiseReport
from sae_lens_isae.identifiability.pairwise_results import PairIdentifiability, SAESummary
from sae_lens_isae.identifiability.table1 import TableRow, table_row

__all__ = [
    "Audit",
    "AuditReport",
    "Consensus",
    "DictionaryMatch",
    "PairIdentifiability",
    "PairwiseReport",
    "SAESummary",
    "TableRow",
    "audit",
    "consensus_sae",
    "match_dictionaries",
    "pairwise_identifiability",
    "recurring_latents",
    "table_row",
]
