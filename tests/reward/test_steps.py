import random
from itertools import accumulate

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from reward.labels import steps
from rollout.tasks.arithmetic import Item, character_tokenizer


class StepFinder(steps.StepFinder):
    """Of outputs without tools."""

    def ends(self, ids):
        return super().ends(ids, (True,) * len(ids))

    def texts(self, ids):
        return super().texts(ids, (True,) * len(ids))


ITEM = Item(start=17, operations=(("+", 8), ("-", 9)))
MERGES = [("Ċ", "Ċ"), (".", "Ċ"), ("ĊĊ", "N"), ("o", "k"), ("Ġ", "Ġ"), ("Ġ", "a")]
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(b): b for b in PRINTABLE} | {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in PRINTABLE)}
CHARACTERS = {byte: character for character, byte in BYTES.items()}
"""How byte-level tokens are spelled."""


@pytest.fixture(scope="module")
def characters():
    return character_tokenizer()


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    """Byte-level, with tokens such as `\\n\\n`, `.\\n` and `\\n\\nN`; a character beyond ASCII is one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", "<step>", *alphabet, *("".join(merge) for merge in MERGES)]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<step>"]}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def ids_of(tokenizer, *tokens: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(token.replace("\n", "Ċ").replace(" ", "Ġ")) for token in tokens]


def test_the_built_in_task_has_a_step_a_line_and_the_last_holds_the_eos(characters):
    ids = [*characters.encode(ITEM.output, add_special_tokens=False), characters.eos_token_id]
    finder = StepFinder(characters, "newline")
    assert ITEM.output == "17+8=25\n25-9=16\n#### 16"
    assert finder.ends(ids) == (7, 15, 23) and len(ids) == 24
    assert finder.texts(ids) == ("17+8=25\n", "25-9=16\n", "#### 16")


def test_an_output_that_is_cut_short_ends_its_last_step_where_it_was_cut(characters):
    finder = StepFinder(characters, "newline")
    ids = characters.encode("17+8=25\n25-", add_special_tokens=False)
    assert finder.ends(ids) == (7, 10) and finder.texts(ids) == ("17+8=25\n", "25-")
    assert finder.ends(ids[:8]) == (7,), "cut right behind a marker"


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("", (0,)),  # the eos alone
        ("\n", (1,)),
        ("1\n", (2,)),  # the eos alone is no step
        ("1\n\n \n2", (4, 6)),  # empty lines join the step before them
        ("\n\n1\n2", (3, 5)),  # or lead into the first one
        ("1\n2\n\n", (1, 5)),
    ],
)
def test_a_stretch_without_text_is_no_step(characters, text, ends):
    ids = [*characters.encode(text, add_special_tokens=False), characters.eos_token_id]
    assert StepFinder(characters, "newline").ends(ids) == ends
    assert StepFinder(characters, "newline").ends([]) == ()


def test_a_step_ends_at_the_token_that_holds_the_end_of_the_marker(bpe):
    ids = ids_of(bpe, "a", ".\n", "ok", "\n\n", "b", "\n", "\n", "c", "\n\nN", "o", "</s>")
    assert bpe.decode(ids, skip_special_tokens=True) == "a.\nok\n\nb\n\nc\n\nNo"
    assert StepFinder(bpe, "newline").ends(ids) == (1, 3, 6, 8, 10)
    assert StepFinder(bpe, "newline").texts(ids) == ("a.\n", "ok\n\n", "b\n\n", "c\n\nN", "o")
    assert StepFinder(bpe, "blank_line").ends(ids) == (3, 6, 8, 10), "one marker over two tokens, one inside a token"
    assert StepFinder(bpe, ".").ends(ids) == (1, 10)


def test_a_marker_over_tokens_and_a_token_with_more_than_a_marker(bpe):
    assert StepFinder(bpe, "blank_line").ends(ids_of(bpe, "a", ".\n", "\n\nN", "o")) == (2, 3)
    assert StepFinder(bpe, "newline").ends(ids_of(bpe, "\n\nN", "o", "\n\n", "\n\n", "b")) == (0, 3, 4)


def test_characters_of_several_tokens_are_read_whole(bpe):
    ids = bpe.encode("é±\nκι ок。好\n", add_special_tokens=False)
    assert len(ids) == len("é±\nκι ок。好\n".encode())
    finder = StepFinder(bpe, "newline")
    assert finder.texts(ids) == ("é±\n", "κι ок。好\n") and finder.ends(ids) == (4, len(ids) - 1)
    assert StepFinder(bpe, "。").texts(ids) == ("é±\nκι ок。", "好\n"), "the marker itself is three tokens"


def test_bytes_that_are_no_character_hide_no_step(bpe):
    broken = ids_of(bpe, "a") + bpe.encode("好", add_special_tokens=False)[:2]
    ids = [*broken, *ids_of(bpe, "\n", "b"), *broken, *ids_of(bpe, "</s>")]
    assert StepFinder(bpe, "newline").ends(ids) == (3, len(ids) - 1)
    assert StepFinder(bpe, "<step>").ends([*broken, *ids_of(bpe, "<step>", "b")]) == (3, 4)


def test_a_special_token_can_be_the_marker(bpe):
    ids = ids_of(bpe, "a", "<step>", "<step>", "b", "</s>")
    assert StepFinder(bpe, "<step>").ends(ids) == (2, 4)
    assert StepFinder(bpe, "newline").texts(ids) == ("ab",), "elsewhere special tokens have no text"


def test_the_pieces_of_any_cut_make_up_the_text_and_steps_lie_where_the_characters_do(bpe):
    rng = random.Random(0)
    for _ in range(100):
        words = [rng.choice(["a", "ok", " ", "\n", "\n\n", ".\n", "好", "é", "\n\nN"]) for _ in range(rng.randint(1, 12))]
        ids = [
            i
            for word in words
            for i in rng.choice([bpe.encode(word), [bpe.convert_tokens_to_ids(CHARACTERS[b]) for b in word.encode()]])
        ]
        finder = StepFinder(bpe, "newline")
        assert "".join(finder.texts(ids)) == bpe.decode(ids) == "".join(words)
        assert finder.ends(ids) == slow_ends(bpe, ids)


def slow_ends(tokenizer, ids) -> tuple[int, ...]:
    """Newlines, from the bytes of each token: a line's bytes end somewhere in a token; blank lines join the line before."""
    parts = [bytes_of(tokenizer, i) for i in ids]
    after, data = list(accumulate(map(len, parts))), b"".join(parts)
    cuts = sorted(
        {next(t for t, n in enumerate(after) if n > at) for at, byte in enumerate(data) if byte == 10} | {len(ids) - 1}
    )
    ends, start = [], 0
    for cut in cuts:
        blank = not b"".join(parts[start : cut + 1]).strip()
        if blank and not ends:
            continue
        ends = [*(ends[:-1] if blank else ends), cut]
        start = cut + 1
    return tuple(ends) or (len(ids) - 1,)


def bytes_of(tokenizer, token: int) -> bytes:
    return bytes(BYTES[character] for character in tokenizer.convert_ids_to_tokens(token))


def test_a_tokenizer_that_puts_spaces_between_words_is_read_as_it_decodes(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = [*tokenizer.convert_tokens_to_ids(["w1", "=", "w2", "=", "w3"]), 2]
    assert StepFinder(tokenizer, "= w").ends(ids) == (2, 5)
    assert "".join(StepFinder(tokenizer, "=").texts(ids)).strip() == tokenizer.decode(ids, skip_special_tokens=True)


def test_no_boundary_is_refused(characters):
    with pytest.raises(ValueError, match="step_boundary"):
        StepFinder(characters, "")


def shown(tokenizer, *pieces):
    """Ids and mask of an output in pieces: what a tool put there begins with a mark."""
    ids, mask = [], []
    for piece in pieces:
        encoded = tokenizer.encode(piece.removeprefix("TOOL"), add_special_tokens=False)
        ids += encoded
        mask += [not piece.startswith("TOOL")] * len(encoded)
    return ids, mask


def test_lines_of_a_tools_output_are_no_steps(characters):
    finder = steps.StepFinder(characters, "newline")
    ids, mask = shown(characters, "1+1=\n2+2", "TOOL\n3\n4\n\n5\n", "6=6\n#### 7")
    assert finder.texts(ids, mask) == ("1+1=\n", "2+2\n", "6=6\n", "#### 7")
    ends = finder.ends(ids, mask)
    assert [characters.decode([ids[end]]) for end in ends] == ["\n", "2", "\n", "7"] and all(mask[end] for end in ends)
    said, whole = [i for i, mine in zip(ids, mask, strict=True) if mine], (True,) * sum(mask)
    assert len(finder.ends(said, whole)) == 3, "without the tool between them two of the steps would be one"


def test_an_output_cut_while_a_tool_speaks_ends_with_the_policys_last_word(characters):
    finder = steps.StepFinder(characters, "blank_line")
    ids, mask = shown(characters, "1\n\n2\n", "TOOL\n3", "\n", "TOOL4\n\n5")
    assert finder.ends(ids, mask) == (2, 7) and finder.texts(ids, mask) == ("1\n\n", "2\n\n")
