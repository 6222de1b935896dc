"""Where reasoning steps end, as token positions found on the sampled ids; text is decoded token by token and never encoded.

A marker ends a step: a step's last token is the one that holds the marker's last character. What a model samples may put that
anywhere in a token (".\\n", "\\n\\nNext"), and may spread one character over several tokens.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, groupby

from transformers import PreTrainedTokenizerBase

MARKERS = {"newline": "\n", "blank_line": "\n\n"}
BROKEN = "\ufffd"
"""What decoding gives for the bytes of an unfinished character."""


class StepFinder:
    """Steps of an output under one tokenizer and one boundary: "newline", "blank_line", or the marker itself."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, boundary: str):
        """Raises ValueError for an empty boundary."""
        if not boundary:
            raise ValueError("step_boundary: '', expected newline, blank_line or the text that ends a step")
        self._tokenizer = tokenizer
        self._marker = MARKERS.get(boundary, boundary)
        self._special = set(tokenizer.all_special_ids)
        self._anchor, self._anchor_text = self._find_anchor()
        self._cache: dict[int, str] = {}

    def ends(self, output_ids: Sequence[int], sampled_mask: Sequence[bool]) -> tuple[int, ...]:
        """The position of each step's last token; the last step's is always the last sampled token, eos included.

        What a tool put between the policy's words is in no step and ends the one before it. A stretch with nothing but white
        space, special tokens and the marker is no step: it joins the step before it, or leads into the first one.
        """
        return self._cut(output_ids, sampled_mask)[1]

    def texts(self, output_ids: Sequence[int], sampled_mask: Sequence[bool]) -> tuple[str, ...]:
        """The text of each step, its marker included, without special tokens; a line ends where a tool's output begins."""
        pieces, ends = self._cut(output_ids, sampled_mask)
        starts = [0, *(end + 1 for end in ends)]
        texts = ["".join(pieces[start : end + 1]) for start, end in zip(starts, ends, strict=False)]
        to_tool = [end + 1 < len(pieces) and not sampled_mask[end + 1] for end in ends]
        return tuple(f"{x}\n" if tool and not x.endswith("\n") else x for x, tool in zip(texts, to_tool, strict=True))

    def _cut(self, output_ids: Sequence[int], sampled_mask: Sequence[bool]) -> tuple[list[str], tuple[int, ...]]:
        """What each sampled token adds to the text, nothing for the others; and where steps end."""
        pieces = [piece if said else "" for piece, said in zip(self.pieces(output_ids), sampled_mask, strict=True)]
        stretches = self._stretch_ends(pieces, sampled_mask)
        ends: list[int] = []
        start = 0
        for end in stretches:
            if "".join(pieces[start : end + 1]).replace(self._marker, "").strip():
                ends.append(end)
            elif ends:
                ends[-1] = end
            else:
                continue
            start = end + 1
        return pieces, tuple(ends or stretches[-1:])

    def _stretch_ends(self, pieces: list[str], sampled_mask: Sequence[bool]) -> list[int]:
        """The tokens that hold a marker's last character, and the last one before a tool speaks or the output ends."""
        found: set[int] = set()
        for said, run in groupby(range(len(pieces)), key=lambda index: sampled_mask[index]):
            if said:
                indices = list(run)
                after = list(accumulate(len(pieces[index]) for index in indices))
                markers = re.finditer(re.escape(self._marker), "".join(pieces[index] for index in indices))
                found |= {indices[bisect_right(after, marker.end() - 1)] for marker in markers} | {indices[-1]}
        return sorted(found)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text; a character of several tokens is added by its last."""
        pieces: list[str] = []
        waiting: list[int] = []
        for token in ids:
            if token in self._special:
                waiting = []
            piece = self._piece(token) if not waiting else self._decode([*waiting, token])
            unfinished = piece.endswith(BROKEN)
            waiting = [*waiting, token] if unfinished else []
            pieces.append("" if unfinished else piece)
        if waiting:
            pieces[-1] = self._decode(waiting)
        return pieces

    def _piece(self, token: int) -> str:
        if token not in self._cache:
            self._cache[token] = self._decode([token])
        return self._cache[token]

    def _decode(self, ids: list[int]) -> str:
        """The text that these tokens add behind another: some decoders treat the first token of a text differently."""
        if len(ids) == 1 and ids[0] in self._special:
            text = str(self._tokenizer.decode(ids, skip_special_tokens=False))
            return text if self._marker in text else ""
        return self._text([self._anchor, *ids])[len(self._anchor_text) :]

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _find_anchor(self) -> tuple[int, str]:
        """An ordinary token of plain letters or digits."""
        for token in range(len(self._tokenizer)):
            if token not in self._special and (text := self._text([token])).isascii() and text.isalnum():
                return token, text
        raise ValueError("the tokenizer has no token of plain letters or digits, so the text of a token cannot be told")
