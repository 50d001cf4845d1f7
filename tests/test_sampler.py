"""BalancedBatchSampler against plain loops and counters."""

from __future__ import annotations

import json
import math
import random
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from lookalike.data.sampler import BalancedBatchSampler, SamplerReport
from lookalike.errors import CheckpointError, DataError

Policy = Literal["exclude", "repeat"]
Balance = Literal["size", "equal"]


def labels_of(sizes: Sequence[int], seed: int = 0) -> list[int]:
    """So many images of class 0, 1, .. in a mixed order."""
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    random.Random(seed).shuffle(labels)
    return labels


@dataclass(frozen=True)
class Case:
    sizes: list[int]
    per_batch: int
    per_class: int
    policy: Policy
    seed: int
    epoch: int
    balance: Balance = "size"

    @property
    def labels(self) -> list[int]:
        return labels_of(self.sizes, self.seed)

    def sampler(self) -> BalancedBatchSampler:
        sampler = self.fresh_sampler()
        sampler.set_epoch(self.epoch)
        return sampler

    def fresh_sampler(self) -> BalancedBatchSampler:
        return BalancedBatchSampler(
            self.labels,
            self.per_batch,
            self.per_class,
            singletons=self.policy,
            class_balance=self.balance,
            seed=self.seed,
        )

    def taking_part(self) -> dict[int, int]:
        """The classes that take part, with their sizes."""
        least = 2 if self.policy == "exclude" and self.per_class > 1 else 1
        return {label: size for label, size in enumerate(self.sizes) if size >= least}

    def places(self) -> dict[int, int]:
        """How many times K images it takes to show a class once."""
        return {
            label: len(range(0, size, self.per_class)) for label, size in self.taking_part().items()
        }


@st.composite
def cases(draw: st.DrawFn, balances: Sequence[Balance] = ("size", "equal")) -> Case:
    """Cases with enough classes to fill a batch; sizes uneven on purpose."""
    size = st.one_of(st.integers(1, 4), st.integers(1, 12), st.integers(20, 40))
    case = Case(
        sizes=draw(st.lists(size, min_size=1, max_size=8)),
        per_batch=draw(st.integers(1, 5)),
        per_class=draw(st.integers(1, 5)),
        policy=draw(st.sampled_from(["exclude", "repeat"])),
        seed=draw(st.integers(0, 2**32)),
        epoch=draw(st.integers(0, 9)),
        balance=draw(st.sampled_from(balances)),
    )
    assume(len(case.taking_part()) >= case.per_batch)
    return case


@settings(deadline=None, max_examples=200)
@given(cases())
def test_every_batch_holds_exactly_p_classes_of_k_images(case: Case) -> None:
    labels = case.labels
    for batch in case.sampler():
        assert all(type(index) is int for index in batch)
        of_each = Counter(labels[index] for index in batch)
        assert len(of_each) == case.per_batch
        assert set(of_each.values()) == {case.per_class}
        assert set(of_each) <= set(case.taking_part())


@settings(deadline=None, max_examples=200)
@given(cases())
def test_no_image_stands_twice_in_a_batch_unless_its_class_is_too_small(case: Case) -> None:
    labels = case.labels
    for batch in case.sampler():
        for index, times in Counter(batch).items():
            size = case.sizes[labels[index]]
            # Where there are fewer than K, all of them stand in it, as evenly as can be.
            assert times in {case.per_class // size, -(-case.per_class // size)}
            assert times == 1 or size < case.per_class
        for label in {labels[index] for index in batch}:
            different = {index for index in batch if labels[index] == label}
            assert len(different) == min(case.sizes[label], case.per_class)


@settings(deadline=None, max_examples=200)
@given(cases(["size"]))
def test_an_epoch_is_as_long_as_it_says_and_shows_every_image(case: Case) -> None:
    sampler = case.sampler()
    batches = list(sampler)
    places = case.places()
    length = max(len(range(0, sum(places.values()), case.per_batch)), max(places.values()))
    assert len(batches) == len(sampler) == length
    shown = {index for batch in batches for index in batch}
    wanted = {index for index, label in enumerate(case.labels) if label in places}
    assert shown == wanted


@settings(deadline=None, max_examples=200)
@given(cases())
def test_no_image_is_used_again_before_all_of_its_class_were_used(case: Case) -> None:
    labels = case.labels
    times: Counter[int] = Counter()
    unused = dict(case.taking_part())
    for batch in case.sampler():
        for index in batch:
            if times[index] == 0:
                unused[labels[index]] -= 1
            else:
                assert unused[labels[index]] == 0, f"{index} again, others of its class not yet"
            times[index] += 1


@settings(deadline=None, max_examples=200)
@given(cases())
def test_the_use_of_the_images_of_a_class_differs_by_one_at_most(case: Case) -> None:
    assume(min(case.taking_part().values()) >= case.per_class)
    labels = case.labels
    times = Counter(index for batch in case.sampler() for index in batch)
    for label in case.taking_part():
        of_class = [times[index] for index, other in enumerate(labels) if other == label]
        assert max(of_class) - min(of_class) <= 1


@settings(deadline=None, max_examples=200)
@given(cases(["size"]))
def test_places_left_over_are_dealt_evenly_to_classes_with_batches_to_spare(case: Case) -> None:
    labels = case.labels
    batches = list(case.sampler())
    met: Counter[int] = Counter()
    for batch in batches:
        met.update({labels[index] for index in batch})
    extra = {label: met[label] - places for label, places in case.places().items()}
    assert min(extra.values()) >= 0
    most = max(extra.values())
    for label, times in extra.items():
        assert times >= most - 1 or met[label] == len(batches)


@settings(deadline=None, max_examples=200)
@given(cases(["equal"]))
def test_equal_classes_are_met_equally_often_in_an_epoch_of_the_same_length(case: Case) -> None:
    batches = list(case.sampler())
    assert len(batches) == len(list(replace(case, balance="size").sampler()))
    met = Counter(dict.fromkeys(case.taking_part(), 0))
    for batch in batches:
        met.update({case.labels[index] for index in batch})
    each = len(batches) * case.per_batch / len(met)
    assert set(met.values()) <= {math.floor(each), math.ceil(each)}


def test_the_classes_met_once_more_and_the_images_left_out_change_from_epoch_to_epoch() -> None:
    # 60 places for 7 classes: eight of each, and four classes that are met a ninth time.
    case = Case([60, 3, 3, 3, 3, 3, 3], 2, 2, "exclude", 0, 0, "equal")
    sampler, once_more, shown = case.sampler(), set(), set()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        met: Counter[int] = Counter()
        for batch in sampler:
            met.update({case.labels[index] for index in batch})
            shown.update(batch)
        assert sorted(met.values()) == [8, 8, 8, 9, 9, 9, 9]
        once_more |= {label for label, times in met.items() if times == 9}
    assert once_more == set(range(7))
    assert shown == set(range(len(case.labels)))


@settings(deadline=None, max_examples=100)
@given(cases())
def test_the_report_counts_what_is_there(case: Case) -> None:
    sampler = case.sampler()
    taking_part = case.taking_part()
    small = [size for size in taking_part.values() if size < case.per_class]
    assert sampler.report == SamplerReport(
        num_classes=len(taking_part),
        num_images=sum(taking_part.values()),
        num_batches=len(list(sampler)),
        excluded_singletons=len(case.sizes) - len(taking_part),
        small_classes=len(small),
        repeated_images=sum(case.per_class - size for size in small),
    )


@settings(deadline=None, max_examples=100)
@given(cases())
def test_the_order_depends_on_seed_and_epoch_alone(case: Case) -> None:
    first = list(case.sampler())
    again = case.sampler()
    assert list(again) == first
    assert list(again) == first  # a second time over the same epoch
    again.set_epoch(case.epoch + 1)
    list(again)
    again.set_epoch(case.epoch)
    assert list(again) == first


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    labels = labels_of([9] * 9)
    orders = set()
    for seed in range(4):
        sampler = BalancedBatchSampler(labels, 3, 3, seed=seed)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            orders.add(json.dumps(list(sampler)))
    assert len(orders) == 16


def test_classes_meet_in_changing_company() -> None:
    sampler = BalancedBatchSampler(labels_of([8] * 8), 2, 2)
    labels = labels_of([8] * 8)
    pairs = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        pairs |= {frozenset(labels[index] for index in batch) for batch in sampler}
    assert len(pairs) == 8 * 7 / 2


# Going on in the middle


@settings(deadline=None, max_examples=150)
@given(cases(), st.floats(0, 1))
def test_a_sampler_saved_in_mid_epoch_goes_on_with_the_identical_rest(
    case: Case, where: float
) -> None:
    whole = list(case.sampler())
    done = round(where * len(whole))
    interrupted = case.sampler()
    batches = iter(interrupted)
    for _ in range(done):
        next(batches)
    state = json.loads(json.dumps(interrupted.state_dict()))  # plain numbers only
    restored = case.fresh_sampler()
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    assert len(restored) == len(whole)
    assert list(restored) == whole[done:]
    assert list(restored) == whole  # the next time round it is whole again


def test_state_counts_batches_handed_out() -> None:
    sampler = BalancedBatchSampler(labels_of([4] * 4), 2, 2)
    sampler.set_epoch(7)
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["batches_done"]) == (7, 0)
    batches = iter(sampler)
    next(batches)
    next(batches)
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["batches_done"]) == (7, 2)
    sampler.set_epoch(8)
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["batches_done"]) == (8, 0)


OF_EIGHT = [label for label in range(8) for _ in range(8)]


@pytest.mark.parametrize(
    ("labels", "per_batch", "per_class", "seed"),
    [
        pytest.param(OF_EIGHT, 4, 2, 1, id="another seed"),
        pytest.param(OF_EIGHT[:-1], 4, 2, 0, id="an image less"),
        pytest.param(OF_EIGHT, 4, 3, 0, id="another K"),
        pytest.param(OF_EIGHT, 2, 2, 0, id="another P"),
        pytest.param(OF_EIGHT, 2, 4, 0, id="another P and K, as many batches"),
        pytest.param([*OF_EIGHT[1:], 0], 4, 2, 0, id="as many images, in another order"),
    ],
)
def test_the_state_of_another_sampler_is_refused(
    labels: list[int], per_batch: int, per_class: int, seed: int
) -> None:
    sampler = BalancedBatchSampler(OF_EIGHT, 4, 2)
    before = sampler.state_dict()
    other = BalancedBatchSampler(labels, per_batch, per_class, seed=seed)
    with pytest.raises(CheckpointError, match="Start a new run"):
        sampler.load_state_dict(other.state_dict())
    assert sampler.state_dict() == before


def test_the_state_of_another_balance_is_refused() -> None:
    other = BalancedBatchSampler(OF_EIGHT, 4, 2, class_balance="equal")
    with pytest.raises(CheckpointError, match="class_balance equal, this one has size"):
        BalancedBatchSampler(OF_EIGHT, 4, 2).load_state_dict(other.state_dict())


# Labels of every kind


@pytest.mark.parametrize("kind", ["list", "int64 array", "tensor"])
@pytest.mark.parametrize("base", [0, 2**24, 2**53, 2**63 - 2, -(2**63)])
def test_neighbouring_labels_stay_apart_however_large(base: int, kind: str) -> None:
    labels = [base, base + 1] * 4
    as_kind: Any = {
        "list": labels,
        "int64 array": np.array(labels, dtype=np.int64),
        "tensor": torch.tensor(labels, dtype=torch.int64),
    }[kind]
    sampler = BalancedBatchSampler(as_kind, 2, 2)
    assert sampler.report.num_classes == 2
    for batch in sampler:
        assert sorted(labels[index] - base for index in batch) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "labels",
    [
        [2**63, 2**63 + 1, 2**64 - 1] * 4,
        [2**64, 2**64 + 1, 2**200] * 4,
        [-1, 2**63, 2**63 + 1] * 4,  # no integer type of numpy holds these three
    ],
    ids=["unsigned", "above 64 bits", "signs mixed"],
)
def test_integers_beyond_int64_stay_apart(labels: list[int]) -> None:
    sampler = BalancedBatchSampler(labels, 3, 2)
    for batch in sampler:
        assert sorted(Counter(labels[index] for index in batch).values()) == [2, 2, 2]


def test_labels_may_be_strings() -> None:
    labels = ["apple", "Apple", "apfel ", "りんご", "caf\u00e9", "cafe\u0301", "\udce9"] * 3
    sampler = BalancedBatchSampler(labels, 7, 3)
    (batch,) = list(sampler)
    assert Counter(labels[index] for index in batch) == Counter(dict.fromkeys(labels, 3))


def test_labels_of_one_order_give_the_same_batches_whatever_their_type() -> None:
    numbers = labels_of([3, 5, 4, 2])
    as_strings = ["abcd"[label] for label in numbers]
    batches = list(BalancedBatchSampler(numbers, 3, 2, seed=5))
    assert list(BalancedBatchSampler(as_strings, 3, 2, seed=5)) == batches
    assert list(BalancedBatchSampler(torch.tensor(numbers), 3, 2, seed=5)) == batches


# Classes of one image, small ones, large ones


def test_a_class_of_one_image_is_left_out_by_default() -> None:
    labels = [0, 0, 0, 1, 1, 2]
    sampler = BalancedBatchSampler(labels, 2, 2)
    assert 5 not in {index for batch in sampler for index in batch}
    assert sampler.report.excluded_singletons == 1
    assert sampler.report.num_classes == 2


def test_a_class_of_one_image_is_repeated_where_asked_for() -> None:
    labels = [0, 0, 0, 1, 1, 2]
    sampler = BalancedBatchSampler(labels, 3, 2, singletons="repeat")
    batches = list(sampler)
    assert [batch.count(5) for batch in batches] == [2, 2]  # two batches to show class 0 whole
    assert sampler.report.excluded_singletons == 0
    assert (sampler.report.small_classes, sampler.report.repeated_images) == (1, 1)


def test_with_one_image_a_class_there_are_no_singletons() -> None:
    labels = [0, 1, 2, 3]
    sampler = BalancedBatchSampler(labels, 2, 1)
    assert sorted(index for batch in sampler for index in batch) == labels
    assert sampler.report.excluded_singletons == 0


def test_one_class_that_outweighs_all_others_is_in_every_batch() -> None:
    labels = labels_of([101, 2, 3, 2])
    sampler = BalancedBatchSampler(labels, 3, 2)
    batches = list(sampler)
    assert len(batches) == 51  # ceil(101 / 2): one place a batch is all it can have
    assert all(0 in {labels[index] for index in batch} for batch in batches)
    times = Counter(index for batch in batches for index in batch if labels[index] == 0)
    assert sorted(times.values()) == [1] * 100 + [2]
    met = Counter(label for batch in batches for label in {labels[index] for index in batch})
    # 102 places are left for classes that need 1, 2 and 1: each gets 32 or 33 more.
    assert sum(met[label] for label in (1, 2, 3)) == 102
    assert {met[1] - 1, met[2] - 2, met[3] - 1} == {32, 33}


def test_many_classes_of_many_sizes_are_all_shown() -> None:
    sizes = [1 + (7 * label) % 23 for label in range(500)]
    case = Case(sizes, 16, 4, "exclude", 3, 1)
    batches = list(case.sampler())
    assert {len({case.labels[i] for i in batch}) for batch in batches[:5]} == {16}
    assert len({index for batch in batches for index in batch}) == sum(s for s in sizes if s > 1)


# Too few classes


@pytest.mark.parametrize(
    ("labels", "per_batch", "said"),
    [
        ([0, 0, 1, 1, 2, 2], 4, ["4 different", "3 can take part", "--n-classes-per-batch 3"]),
        (
            [0, 0, 1, 1, 2, 3, 4],
            4,
            ["2 can take part", "of 5", "3 have a single image", "--n-classes-per-batch 2"],
        ),
        ([0, 1, 2, 3], 2, ["0 can take part", "4 have a single", "--singletons repeat"]),
        ([0, 0, 0, 0], 2, ["1 can take part", "of 1", "at least two classes"]),
        ([], 2, ["0 can take part", "at least two classes"]),
    ],
)
def test_too_few_classes_is_an_error_with_the_counts_and_what_to_set(
    labels: list[int], per_batch: int, said: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        BalancedBatchSampler(labels, per_batch, 2)
    for part in said:
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_the_error_says_to_set_helps() -> None:
    assert len(BalancedBatchSampler([0, 0, 1, 1, 2, 2], 3, 2)) == 1
    assert len(BalancedBatchSampler([0, 1, 2, 3], 2, 2, singletons="repeat")) == 2


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 3), max_size=6),
    per_batch=st.integers(1, 6),
    policy=st.sampled_from(["exclude", "repeat"]),
)
def test_it_is_an_error_just_when_too_few_classes_can_take_part(
    sizes: list[int], per_batch: int, policy: Policy
) -> None:
    usable = sum(1 for size in sizes if size > 1 or policy == "repeat")
    try:
        BalancedBatchSampler(labels_of(sizes), per_batch, 2, singletons=policy)
    except DataError:
        assert usable < per_batch
    else:
        assert usable >= per_batch


@pytest.mark.parametrize(("per_batch", "per_class"), [(0, 2), (2, 0), (-1, 2), (2, -1)])
def test_an_empty_batch_is_an_error(per_batch: int, per_class: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BalancedBatchSampler([0, 0, 1, 1], per_batch, per_class)


# With torch


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> int:
        return index


def test_it_is_a_batch_sampler_of_torch() -> None:
    labels = labels_of([6, 6, 6, 6])
    sampler = BalancedBatchSampler(labels, 2, 3)
    loader = DataLoader(Numbers(), batch_sampler=sampler)
    assert len(loader) == len(sampler) == 4
    read = [batch.tolist() for batch in loader]
    assert read == list(BalancedBatchSampler(labels, 2, 3))


def test_the_defaults_are_four_classes_of_two() -> None:
    (batch, *_) = BalancedBatchSampler(labels_of([4] * 6))
    assert len(batch) == 8
    assert len({labels_of([4] * 6)[index] for index in batch}) == 4


def test_a_balance_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="class_balance is 'equally'; expected 'size' or 'equal'"):
        BalancedBatchSampler([0, 0, 1, 1], 2, 2, class_balance="equally")  # type: ignore[arg-type]


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'repaet'"):
        BalancedBatchSampler([0, 0, 1, 1], 2, 2, singletons="repaet")  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", ["integers", "text"])
def test_a_sampler_takes_little_memory_an_image(labels: str) -> None:
    numbers = np.random.default_rng(0).integers(0, 20_000, 200_000)
    given: Any = [f"class {n}" for n in numbers.tolist()] if labels == "text" else numbers
    tracemalloc.start()
    try:
        sampler = BalancedBatchSampler(given, 256, 4)
        built = tracemalloc.get_traced_memory()[1]
        next(iter(sampler))
        planned = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert built / len(numbers) < 40
    assert planned / len(numbers) < 60
