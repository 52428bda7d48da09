"""How figures are written: every figure the same way, as PNG and PDF."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

OUTPUT = Path(__file__).parent / "output"
FONTS: dict[Any, Any] = {"pdf.fonttype": 42, "font.size": 9}  # TrueType, which journals ask for


def save(fig: Figure, name: str, folder=OUTPUT) -> list[Path]:
    """Write `fig` to <folder>/<name>.png and .pdf; the same figure gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    with matplotlib.rc_context(FONTS):
        fig.savefig(paths[0], dpi=200)
        fig.set_layout_engine("none")  # laid out by now
        fig.savefig(paths[1], dpi=200, metadata={"CreationDate": None})
    return paths
