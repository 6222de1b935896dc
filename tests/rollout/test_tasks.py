import random
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rollout.tasks.arithmetic import (
    LARGEST,
    SMALL_MODELS,
    SMALLEST,
    Item,
    character_tokenizer,
    demonstration,
    is_held_out,
    items,
    make_small_llama,
    questions,
)
from rollout.tasks.calculator import Calculation, calculations, program_demonstration
from rollout.tasks.calculator import questions as calculator_questions


def sum_of(question):
    return sum(int(sign + digits) for sign, digits in re.findall(r"([+-]?)(\d+)", question.replace(" ", "")))


def test_an_item_asks_a_sum_and_works_it_out_one_step_a_line():
    item = Item(start=37, operations=(("+", 48), ("-", 19), ("+", 26)))
    assert item.question == "37 + 48 - 19 + 26"
    assert item.output == "37+48=85\n85-19=66\n66+26=92\n#### 92"
    assert item.answer == "92"


def test_items_are_right_different_in_range_and_the_same_for_the_same_seed():
    made = items(5, 300, held_out=False)
    assert made == items(5, 300, held_out=False) and made != items(6, 300, held_out=False)
    assert len({item.question for item in made}) == 300
    assert {len(item.operations) for item in made} == {3}
    for item in made:
        assert item.answer == str(sum_of(item.question))
        values = [int(x) for line in item.output.split("\n")[:-1] for x in line.rpartition("=")[2:]]
        assert all(SMALLEST <= value <= LARGEST for value in values)
        assert all(1 <= operand <= 9 for _, operand in item.operations)


def test_held_out_items_are_disjoint_from_training_items_by_the_hash_of_their_text():
    train, held_out = items(0, 500, held_out=False), items(0, 100, held_out=True)
    assert all(is_held_out(item.question) for item in held_out)
    assert not any(is_held_out(item.question) for item in train)
    # The rule itself is part of the contract: another one would mix the sets of two versions.
    assert [n for n in range(40) if is_held_out(f"{n} + 1")] == [7, 16, 28]


def test_more_operations_are_a_parameter():
    assert {len(item.operations) for item in items(0, 50, held_out=False, lengths=(4, 4))} == {4}
    with pytest.raises(ValueError, match="least <= most"):
        items(0, 1, held_out=False, lengths=(3, 2))


def counted_by_hand(operations):
    """Different sums of one or two operations, by trying every number."""
    inside, operands = range(SMALLEST, LARGEST + 1), [n for n in range(-9, 10) if n]
    steps = [(a, a + n) for a in inside for n in operands if a + n in inside]
    return len(steps) if operations == 1 else sum(b == c for _, b in steps for c, _ in steps)


@pytest.mark.parametrize("operations", [1, 2])
def test_a_task_knows_all_of_its_questions_and_gives_no_more(operations):
    lengths = (operations, operations)
    every = list(questions(lengths).every())
    assert questions(lengths).total == len(every) == len(set(every)) == counted_by_hand(operations)
    held_out = sum(map(is_held_out, every))
    assert questions(lengths).most(10**6, True) == held_out
    assert questions(lengths).most(10**6, False) == len(every) - held_out
    assert {item.question for item in items(0, held_out, True, lengths)} == {text for text in every if is_held_out(text)}
    with pytest.raises(
        ValueError, match=f"{held_out + 1} different questions to hold out asked for; expected at most {held_out}"
    ):
        items(0, held_out + 1, True, lengths)


def test_sums_of_several_lengths_are_counted_together():
    assert questions((1, 2)).total == len(set(questions((1, 2)).every())) == counted_by_hand(1) + counted_by_hand(2)


def test_the_calculators_questions_are_counted_without_making_them_all():
    one = calculator_questions((1, 1))
    assert one.total == len(set(one.every())) == 87**2
    assert calculator_questions((1, 3)).total == 87**2 * (1 + 1998 + 1998**2)
    with pytest.raises(ValueError, match="expected at most 955"):
        calculations(0, 956, True, (1, 1))
    with pytest.raises(ValueError, match="10000000 different questions to hold out asked for; expected at most"):
        calculations(0, 10**7, True, (2, 2))


def test_a_forgotten_carry_or_borrow_is_off_by_ten_and_the_rest_follows_from_it():
    item = Item(start=18, operations=(("+", 5), ("-", 2), ("+", 7)))
    assert demonstration(item, 0.9999, random.Random(0)) == "18+5=13\n13-2=11\n11+7=18\n#### 18"


def test_a_step_without_carry_is_never_wrong():
    item = Item(start=21, operations=(("+", 5), ("-", 4)))
    assert demonstration(item, 0.9999, random.Random(0)) == "21+5=26\n26-4=22\n#### 22"


def test_a_mistake_that_would_leave_the_range_is_not_made():
    item = Item(start=14, operations=(("+", 6), ("-", 1)))
    assert demonstration(item, 0.9999, random.Random(0)) == "14+6=20\n20-1=29\n#### 29"


def test_imperfect_demonstrations_stay_well_formed_and_are_wrong_about_as_often_as_asked():
    made = items(1, 2000, held_out=False, lengths=(2, 2))
    rng, wrong, chances = random.Random(2), 0, 0
    for item in made:
        lines = demonstration(item, 0.3, rng).split("\n")
        assert lines[-1] == f"#### {lines[-2].rpartition('=')[2]}"
        for line in lines[:-1]:
            off = int(line.rpartition("=")[2]) - sum_of(line.rpartition("=")[0])
            assert off in (0, -10 if "+" in line else 10)
            left, right = (int(x) % 10 for x in re.findall(r"\d+", line)[:2])
            chances += left + right > 9 if "+" in line else left < right
            wrong += off != 0
    # Some mistakes would leave the range and are not made.
    assert 0.2 < wrong / chances < 0.3


def test_the_tokenizer_gives_back_the_exact_text_one_token_per_character():
    tokenizer = character_tokenizer()
    text = "37+48=85\n85-19=66\n\n  #### 66 "
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text) and tokenizer.decode(ids) == text
    assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *ids]
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_the_tokenizer_for_programs_has_words_of_its_own():
    tokenizer = character_tokenizer(*SMALL_MODELS["small-llama-code"])
    text = "```python\nprint(4 * 5)\n```\nan `output`, 'pythons'"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    words = [tokenizer.decode([i]) for i in ids]
    assert [w for w in words if len(w) > 1] == ["```", "python", "print", "```", "output", "python"]


@pytest.mark.parametrize("tied", [False, True])
def test_the_small_llama_loads_is_seeded_and_names_its_special_tokens(tmp_path, tied):
    before = torch.random.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_small_llama(tmp_path / name, seed, tied=tied)
    assert torch.equal(torch.random.get_rng_state(), before)
    a, b, c = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in "abc")
    assert torch.equal(a.model.embed_tokens.weight, b.model.embed_tokens.weight)
    assert not torch.equal(a.model.embed_tokens.weight, c.model.embed_tokens.weight)
    assert (a.lm_head.weight is a.model.embed_tokens.weight) == tied == a.config.tie_word_embeddings
    assert 2e6 < sum(parameter.numel() for parameter in a.parameters()) < 4e6 and a.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    ids = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids == (0, 1, 2)
    for config in (a.config, a.generation_config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == ids
    assert len(tokenizer) == a.config.vocab_size and tokenizer.chat_template is not None
    assert tokenizer.decode(tokenizer("1+1=2\n#### 2", add_special_tokens=False).input_ids) == "1+1=2\n#### 2"


def test_a_calculation_is_worked_out_by_a_program_or_guessed_wrongly():
    item = Calculation(factors=(47, 86), terms=(("-", 529),))
    assert (item.question, item.answer) == ("47 * 86 - 529", "3513")
    assert program_demonstration(item, 0.0, random.Random(0)) == (
        "```python\nprint(47 * 86 - 529)\n```\n```output\n3513\n```\n#### 3513"
    )
    guesses = [program_demonstration(item, 0.9999, random.Random(seed)) for seed in range(50)]
    assert all(re.fullmatch(r"#### \d+", guess) for guess in guesses)
    assert all(0 < abs(int(guess[5:]) - 3513) <= 99 for guess in guesses) and len(set(guesses)) > 20


def test_calculations_are_right_different_and_the_same_for_the_same_seed():
    made = calculations(5, 300, held_out=False, lengths=(1, 3))
    assert made == calculations(5, 300, held_out=False, lengths=(1, 3))
    assert len({item.question for item in made}) == 300 and {len(item.terms) for item in made} == {0, 1, 2}
    assert all(item.answer == str(eval(item.question)) and not is_held_out(item.question) for item in made)
    assert all(is_held_out(item.question) for item in calculations(5, 50, held_out=True, lengths=(2, 2)))
