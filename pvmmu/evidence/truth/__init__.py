"""Real measurements against the model's prediction.

    pvmmu truth FILE... [--json]

takes recordings of a real Xen PV guest (`recordings`) and tables of counts per iteration, whose
rows are run on the model guest (`measurements`).
"""

from pvmmu.evidence.truth.design_space import agreement, compare_designs
from pvmmu.evidence.truth.design_space_files import shipped_designs
from pvmmu.evidence.truth.direct_vs_shadow import direct_vs_shadow, direct_vs_shadow_finding
from pvmmu.evidence.truth.measurements import compare_measurements
from pvmmu.evidence.truth.native_one import native_one, native_one_finding
from pvmmu.evidence.truth.recordings import HOOKS, MODE, compare, shipped_comparison
from pvmmu.evidence.truth.shipped import shipped_measurements, summarise, worst

__all__ = [
    "HOOKS",
    "MODE",
    "agreement",
    "compare",
    "compare_designs",
    "compare_measurements",
    "direct_vs_shadow",
    "direct_vs_shadow_finding",
    "native_one",
    "native_one_finding",
    "shipped_comparison",
    "shipped_designs",
    "shipped_measurements",
    "summarise",
    "worst",
]
