"""Completions that say much beyond the text that their prompt quotes: the pilot's share of them.

By the same limits as the stage faithful (`faithful.limits`), of the cells that it judges.
"""

from collections.abc import Sequence
from functools import cache

from cosmopedia.faithfulness.judge import Source, judge
from cosmopedia.faithfulness.prompt_source import PromptTemplate
from cosmopedia.faithfulness.settings import FaithfulParams
from cosmopedia.tables.cell_files import cell_of
from stages.pilot.prompt_draw import DrawnPrompt
from stages.pilot.shares import Finding, Written, those


class Unfaithful:
    """The measure, for the prompts that were drawn."""

    def __init__(self, drawn: Sequence[DrawnPrompt], params: FaithfulParams):
        self.params, self.template = params, cache(PromptTemplate)
        self.drawn = {one.prompt: one for one in drawn}

    def __call__(self, texts: Sequence[Written]) -> Finding:
        """The share of texts that are beyond the limits, and what one of them says."""
        return those(texts, self._shows)

    def _shows(self, written: Written) -> str:
        one = self.drawn[written.prompt]
        source, cell = self.template(one.template), cell_of(one.cell.partition(" (")[0])
        if not source.quotes or not self.params.judges(cell):
            return ""
        verdict = judge(written.text, Source(source.source_of(written.prompt)), self.params.kinds(cell))
        if not self.params.limits.exceeded(verdict):
            return ""
        return ", ".join(written.text[span.start : span.end] for span in verdict.spans[:3]) or written.text[:80]
