"""Votes: kept, read, summed up, and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava.cli import main
from llava.errors import DataError
from llava.serve.web.strengths import strengths
from llava.serve.web.votes import (
    AnswerVote,
    PairVote,
    PairVoteKind,
    append_vote,
    preferences,
    read_votes,
    summary,
)

DIALOGUE = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
            {"type": "text", "text": "What <image>?"},
        ],
    }
]


def pair(vote: PairVoteKind, left: str = "a", right: str = "b", **more: Any) -> PairVote:
    return PairVote(vote, left, right, **more)


def test_votes_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    votes: list[AnswerVote | PairVote] = [
        AnswerVote("flag", "a"),
        pair("both_bad", blind=True, seed=3),
        pair("left", dialogue=DIALOGUE),
    ]
    for vote in votes:
        append_vote(path, vote, now=5)
    assert list(read_votes(path)) == votes
    assert json.loads(path.read_text().splitlines()[0]) == {
        "type": "answer",
        "vote": "flag",
        "model": "a",
        "time": 5,
    }


@pytest.mark.parametrize(
    "line",
    [
        "7",
        '{"type": "pair"}',
        '{"type": "answer", "vote": "left", "model": "a"}',
        '{"type": "answer", "vote": "up"}',
        '{"type": "answer", "vote": "up", "model": 3}',
        '{"type": "answer", "vote": [], "model": "a"}',
        '{"vote": "up", "model": "a"}',
    ],
)
def test_a_line_that_is_no_vote_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "v").write_text(f'{{"type": "answer", "vote": "up", "model": "a"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2"):
        list(read_votes(tmp_path / "v"))


def test_the_summary_counts_wins_whatever_side_a_model_was_on() -> None:
    votes = [pair("left"), pair("right", "b", "a"), pair("left", "b", "a"), pair("tie"), pair("both_bad")]
    found = summary([*votes, AnswerVote("up", "a"), pair("left", "a", "a")])
    (counted,) = found["pairs"]
    assert counted == {
        "first": "a",
        "second": "b",
        "first_wins": 2,
        "second_wins": 1,
        "ties": 1,
        "both_bad": 1,
    }
    assert found["answers"] == {"a": {"up": 1, "down": 0, "flag": 0}}


def test_two_models_have_the_log_odds_of_their_wins() -> None:
    first, second = strengths([("a", "b", 1.0)] * 29 + [("a", "b", 0.0)] * 9)
    # One tie is added: 29.5 to 9.5.
    assert first.strength - second.strength == pytest.approx(np.log(29.5 / 9.5))
    assert (first.model, second.model) == ("a", "b")
    assert first.low < first.strength < first.high


def simulate(truth: np.ndarray, num_votes: int, seed: int) -> list[tuple[str, str, float]]:
    rng = np.random.default_rng(seed)
    games = []
    for _ in range(num_votes):
        i, j = rng.choice(len(truth), 2, replace=False)
        games.append((f"m{i}", f"m{j}", float(rng.random() < 1 / (1 + np.exp(truth[j] - truth[i])))))
    return games


def test_a_known_ranking_is_recovered_from_simulated_voters() -> None:
    truth = np.array([1.5, 0.5, 0.0, -0.5, -1.5])
    found = strengths(simulate(truth, 3000, seed=1))
    assert [item.model for item in found] == ["m0", "m1", "m2", "m3", "m4"]
    assert np.abs([item.strength for item in found] - truth).max() < 0.25


def test_95_percent_intervals_hold_the_truth_about_95_percent_of_the_time() -> None:
    truth = np.array([0.8, 0.2, -0.2, -0.8])
    hits = []
    for seed in range(200):
        for item in strengths(simulate(truth, 240, seed)):
            hits.append(item.low <= truth[int(item.model[1])] <= item.high)
    # 800 intervals, of which those of one simulation hang together: 3 standard deviations are about 3 %.
    assert 0.92 < np.mean(hits) < 0.98


def test_a_model_that_always_wins_has_a_finite_strength() -> None:
    best, other = strengths([("a", "b", 1.0)] * 1000)
    assert best.strength > 2 > other.strength
    assert np.isfinite([best.low, best.high]).all()


def test_models_that_no_votes_join_are_not_compared() -> None:
    found = strengths([("a", "b", 1.0), ("b", "c", 1.0), ("x", "y", 0.0)])
    assert [(item.model, item.group) for item in found] == [
        ("a", 0),
        ("b", 0),
        ("c", 0),
        ("y", 1),
        ("x", 1),
    ]
    assert strengths([]) == []


def test_decided_pairs_with_their_dialogue_become_preferences() -> None:
    kept: dict[str, Any] = {"dialogue": DIALOGUE, "left_answer": "Red.", "right_answer": "Blue."}
    votes: list[AnswerVote | PairVote] = [
        pair("right", **kept),
        pair("tie", **kept),
        pair("left"),
        AnswerVote("up", "a"),
    ]
    (record,) = preferences(votes)
    assert record == {
        "prompt": [{"role": "user", "content": "<image>\nWhat ?"}],
        "images": ["data:image/png;base64,AA"],
        "chosen": [{"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "assistant", "content": "Red."}],
    }


def test_the_command_sums_up_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "votes.jsonl"
    for _ in range(3):
        append_vote(path, pair("left"))
    assert main(["votes", str(path)]) == 0
    assert "a : b  3 : 0, 0 ties, 0 both bad" in capsys.readouterr().out
    assert main(["votes", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["strengths"][0]["model"] == "a"
    out = tmp_path / "dpo.jsonl"
    assert main(["votes", str(path), "--export-dpo", str(out)]) == 2
    append_vote(path, pair("left", dialogue=DIALOGUE, left_answer="x", right_answer="y"))
    assert main(["votes", str(path), "--export-dpo", str(out)]) == 0
    assert json.loads(out.read_text())["chosen"][0]["content"] == "x"
