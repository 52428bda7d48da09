"""The number formats that `number_formats` compares."""

from typing import Any, NamedTuple

from qdiffjax.quant import IntFormat, LogFormat, absmax_scale, lloyd_max, nf4
from qdiffjax.quant.formats import blocks, floats


class Entry(NamedTuple):
    """A format with its name, the family it is drawn with, and whether it has a zero point."""

    family: str
    name: str
    format: Any
    is_affine: bool = False

    @property
    def element(self) -> Any:
        """What each number is rounded to."""
        return self.format.element if isinstance(self.format, blocks.BlockFormat) else self.format

    @property
    def bits(self) -> float:
        """Storage per number, with the scales of blocks; those of channels are not counted."""
        return float(self.format.bits)


ENTRIES = (
    *(Entry("integer", f"int{b}", IntFormat(b)) for b in range(2, 9)),
    *(Entry("affine", f"uint{b}", IntFormat(b, signed=False), True) for b in range(2, 9)),
    *(Entry("float", name, getattr(floats, name.upper())) for name in
      ("e2m1", "e2m3", "e3m2", "e4m3fn", "e5m2", "bf16", "fp16")),
    *(Entry("codebook", f"lloyd{b}", lloyd_max(b)) for b in range(2, 9)),
    Entry("codebook", "nf4", nf4()),
    *(Entry("log", f"log2_{b}", LogFormat(b, 1.0, True)) for b in range(3, 6)),
    *(Entry("log", f"sqrt2_{b}", LogFormat(b, 0.5, True)) for b in range(4, 7)),
    Entry("block", "nvfp4", blocks.NVFP4), Entry("block", "mxfp4", blocks.MXFP4),
    Entry("block", "mxfp6_e2m3", blocks.MXFP6_E2M3),
    Entry("block", "mxfp6_e3m2", blocks.MXFP6_E3M2),
    Entry("block", "mxfp8_e4m3", blocks.MXFP8_E4M3),
    Entry("block", "mxfp8_e5m2", blocks.MXFP8_E5M2), Entry("block", "mxint8", blocks.MXINT8),
    *(Entry("block float", f"bfp{m}", blocks.block_float(m, 16)) for m in range(2, 8)),
    *(Entry("block integer", f"int{b}_g32",
            blocks.BlockFormat(IntFormat(b), 32, absmax_scale, 16)) for b in range(2, 9)),
)  # fmt: skip
FAMILIES = tuple(dict.fromkeys(e.family for e in ENTRIES))
