"""Shares and means over documents, with intervals that know that claims of one document are not independent."""

import math
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass
class Ratio:
    """A ratio of sums over documents: unsupported spans over claims, summed scores over sentences.

    Sums alone are kept, so parts add up and memory does not grow. The interval (95%) is that of a ratio estimator with
    documents as its units (Cochran 1977, Sampling Techniques, 2.11), with Student's t; of a share Wilson's, with the
    claims divided by the design effect, so that one without a case has an upper bound too.
    """

    documents: int = 0
    top: float = 0.0
    bottom: float = 0.0
    top2: float = 0.0
    both: float = 0.0
    bottom2: float = 0.0

    def add(self, top: float, bottom: float) -> None:
        """A document's two sums; one without claims or sentences says nothing."""
        if bottom:
            self.documents += 1
            self.top += top
            self.bottom += bottom
            self.top2 += top * top
            self.both += top * bottom
            self.bottom2 += bottom * bottom

    @property
    def value(self) -> float | None:
        return self.top / self.bottom if self.bottom else None

    @property
    def variance(self) -> float | None:
        """Of `value`; None for fewer than two documents."""
        if self.documents < 2:
            return None
        value = self.top / self.bottom
        squares = self.top2 - 2 * value * self.both + value * value * self.bottom2
        return max(squares, 0.0) * self.documents / (self.documents - 1) / self.bottom**2

    def mean_interval(self) -> list[float] | None:
        """Of an unbounded mean; None for fewer than two documents."""
        if self.variance is None:
            return None
        half = float(stdtrit(self.documents - 1, 0.975)) * math.sqrt(self.variance)
        return [self.top / self.bottom - half, self.top / self.bottom + half]

    def share_interval(self) -> list[float] | None:
        """Of a share, within 0 and 1."""
        if self.variance is None:
            return None
        value = min(max(self.top / self.bottom, 0.0), 1.0)
        simple = value * (1 - value) / self.bottom
        size = self.bottom / max(self.variance / simple, 1.0) if simple else self.bottom
        t = float(stdtrit(self.documents - 1, 0.975))
        centre = (value + t * t / (2 * size)) / (1 + t * t / size)
        half = t * math.sqrt(value * (1 - value) / size + t * t / (4 * size * size)) / (1 + t * t / size)
        return [max(0.0, centre - half), min(1.0, centre + half)]

    def figures(self, share: bool = True) -> dict[str, object]:
        """For the metrics."""
        interval = self.share_interval() if share else self.mean_interval()
        return {"value": self.value, "interval": interval, "documents": self.documents}
