"""A figure that a notebook shows without pyplot. Imported with matplotlib, when the first picture is drawn."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A matplotlib `Figure`. As the last expression of a cell it is shown as a PNG.

    A plain `Figure` is shown as its name alone, `<Figure size ...>`, until something imports pyplot.

    >>> Picture()._repr_png_()[1:4]
    b'PNG'
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()
