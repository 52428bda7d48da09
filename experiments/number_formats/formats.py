"""The number formats that `number_formats` compares."""

from typing import Any, NamedTuple

from qdiffjax import quant


class Entry(NamedTuple):
    """A format with its name, the family it is drawn with, and whether it has a zero point."""

    family: str
    name: str
    format: Any
    is_affine: bool = False

    @property
    def element(self) -> Any:
        """What each number is rounded to."""
        return self.format.element if isinstance(self.format, quant.BlockFormat) else self.format

    @property
    def bits(self) -> float:
        """Storage per number, with the scales of blocks; those of channels are not counted."""
        return float(self.format.bits)


ENTRIES = (
    *(Entry("integer", f"int{b}", quant.IntFormat(b)) for b in range(2, 9)),
    *(Entry("affine", f"uint{b}", quant.IntFormat(b, signed=False), True) for b in range(2, 9)),
    *(Entry("float", name, getattr(quant, name.upper())) for name in
      ("e2m1", "e2m3", "e3m2", "e4m3fn", "e5m2", "bf16", "fp16")),
    *(Entry("codebook", f"lloyd{b}", quant.lloyd_max(b)) for b in range(2, 9)),
    Entry("codebook", "nf4", quant.nf4()),
    *(Entry("log", f"log2_{b}", quant.LogFormat(b, 1.0, True)) for b in range(3, 6)),
    *(Entry("log", f"sqrt2_{b}", quant.LogFormat(b, 0.5, True)) for b in range(4, 7)),
    *(Entry("block", name, getattr(quant, name.upper())) for name in
      ("nvfp4", "mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8")),
    *(Entry("block float", f"bfp{m}", quant.block_float(m, 16)) for m in range(2, 8)),
    *(Entry("block integer", f"int{b}_g32", quant.BlockFormat(quant.IntFormat(b), 32,
                                                              quant.absmax_scale, 16))
      for b in range(2, 9)),
)  # fmt: skip
FAMILIES = tuple(dict.fromkeys(e.family for e in ENTRIES))
