"""The judge's memory, patience and budget, against an endpoint that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import httpx
import pytest

from llava.errors import FileError, RemoteError, UsageError
from llava.eval.judge.cost import Prices, Spending, prompt_tokens
from llava.eval.judge.judge import Judge
from llava.eval.judge.replies import ReplyStore, read_store
from tests.eval.judge.fakes import Body, Script, completion, in_turn, judge_of, request_of

BUSY = httpx.Response(429, headers={"retry-after": "0.05"}, json={"error": {"message": "slow down"}})
BROKEN = httpx.Response(500, json={"error": {"message": "oops"}})


def test_a_body_is_what_the_original_sends_and_nothing_else() -> None:
    script = in_turn("yes")
    judge_of(script).ask(request_of())
    messages = [{"role": "user", "content": "Is it?"}]
    assert script.bodies == [{"model": "judge", "messages": messages, "temperature": 0.2, "max_tokens": 16}]


def test_fields_can_be_added_and_removed_for_endpoints_that_want_others() -> None:
    script = in_turn("yes")
    extra = {"max_tokens": None, "max_completion_tokens": 99}
    judge_of(script, extra=extra).ask(request_of())
    assert "max_tokens" not in script.bodies[0]
    assert script.bodies[0]["max_completion_tokens"] == 99


@pytest.mark.parametrize(
    "trouble",
    [
        BUSY,
        BROKEN,
        httpx.Response(503, text="<html>gateway</html>"),
        httpx.Response(200, text="garbage"),
        httpx.Response(200, json={"choices": []}),
    ],
)
def test_passing_trouble_is_waited_out(trouble: httpx.Response) -> None:
    script = in_turn(trouble, "yes")
    assert judge_of(script).ask(request_of()) == "yes"
    assert len(script.bodies) == 2


def test_the_wait_that_a_server_asks_for_is_kept() -> None:
    started = time.monotonic()
    judge_of(in_turn(BUSY, "yes")).ask(request_of())
    assert time.monotonic() - started >= 0.05


def test_silence_is_tried_again_and_then_told() -> None:
    asked: list[int] = []

    async def silent_once(_: httpx.Request) -> httpx.Response:
        asked.append(1)
        if len(asked) == 1:
            await asyncio.sleep(5)
        return httpx.Response(200, json=completion("yes"))

    assert judge_of(silent_once, first_token_timeout_s=0.05).ask(request_of()) == "yes"

    async def silent(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(5)
        raise AssertionError

    with pytest.raises(RemoteError, match=r"silent.*tried 2 times"):
        judge_of(silent, first_token_timeout_s=0.05, num_retries=1).ask(request_of())


def test_retries_end_and_the_error_says_what_the_server_said_but_not_the_key() -> None:
    script = in_turn(httpx.Response(500, text="oops secret-key"))
    with pytest.raises(RemoteError, match=r"500 \(tried 3 times\): oops \*\*\*"):
        judge_of(script, num_retries=2).ask(request_of())
    assert len(script.bodies) == 3


def test_a_wrong_key_is_not_tried_again() -> None:
    script = in_turn(httpx.Response(401, json={"error": {"message": "no"}}))
    with pytest.raises(RemoteError, match="Give the API key"):
        judge_of(script).ask(request_of())
    assert len(script.bodies) == 1


def test_a_reply_is_asked_for_once_and_found_again_by_another_judge(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    first = judge_of(in_turn("yes"), store=ReplyStore(path))
    assert [first.ask(request_of()), first.ask(request_of())] == ["yes", "yes"]
    first.close()
    script = in_turn("no")
    second = judge_of(script, store=ReplyStore(path))
    assert second.ask(request_of()) == "yes"
    assert not script.bodies
    assert second.ask(request_of(sample=1)) == "no", "a second sample is another asking"
    second.close()
    other = judge_of(script, store=ReplyStore(path), model="another")
    assert other.ask(request_of()) == "no", "another model's reply is not taken"
    other.close()


def test_replaying_costs_nothing_and_says_what_the_store_lacks(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    first = judge_of(in_turn("yes"), store=ReplyStore(path))
    first.ask(request_of())
    first.close()
    before = path.read_bytes()
    replay = Judge("judge", None, ReplyStore(path, is_read_only=True))
    replay.announce([request_of()])
    assert replay.ask(request_of()) == "yes"
    with pytest.raises(UsageError, match="no reply of judge to 1 of 2 requests"):
        replay.announce([request_of(), request_of("What?")])
    with pytest.raises(UsageError, match="no reply of judge"):
        replay.ask(request_of("What?"))
    assert path.read_bytes() == before
    with pytest.raises(FileError, match="replayed without it"):
        ReplyStore(tmp_path / "none.jsonl", is_read_only=True)


def test_a_store_that_was_cut_in_the_middle_of_a_line_loses_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    first = judge_of(in_turn("yes", "no"), store=ReplyStore(path))
    first.ask(request_of())
    first.ask(request_of("What?"))
    first.close()
    path.write_bytes(path.read_bytes()[:-20])
    script = in_turn("again")
    second = judge_of(script, store=ReplyStore(path))
    assert [second.ask(request_of()), second.ask(request_of("What?"))] == ["yes", "again"]
    second.close()
    assert [stored.reply.text for stored in read_store(path).values()] == ["yes", "again"]


def test_a_store_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.jsonl"
    path.write_text('{"question_id": 1}\n')
    with pytest.raises(FileError, match="line 1 is no reply of a judge"):
        ReplyStore(path)


def test_what_cannot_be_read_is_asked_again_a_bounded_number_of_times() -> None:
    script = in_turn("", "garbage", "7")
    verdict = judge_of(script).ask_until(request_of(), lambda text: int(text) if text.isdigit() else None)
    assert (verdict.value, verdict.num_attempts) == (7, 3)
    script = in_turn("garbage")
    verdict = judge_of(script, attempts=2).ask_until(request_of(), lambda _: None)
    assert (verdict.text, verdict.value, verdict.num_attempts) == ("garbage", None, 2)
    assert len(script.bodies) == 2


def test_results_come_in_order_and_no_more_at_once_than_allowed() -> None:
    now, most = 0, 0

    async def say(request: httpx.Request) -> httpx.Response:
        nonlocal now, most
        text = json.loads(request.content)["messages"][0]["content"]
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05 if text == "0" else 0.005)
        now -= 1
        return httpx.Response(200, json=completion(text))

    judge = judge_of(say, concurrency=3)
    items = [str(number) for number in range(9)]
    assert list(judge.map(lambda item: judge.ask(request_of(item)), items)) == [
        (item, item) for item in items
    ]
    assert most == 3


def test_one_failure_costs_one_item_and_several_in_a_row_end_it() -> None:
    def say(body: Body, _: int) -> httpx.Response | str:
        return httpx.Response(400, text="no") if body["messages"][0]["content"] == "bad" else "yes"

    judge = judge_of(Script(say), concurrency=1)
    results = [own for _, own in judge.map(lambda item: judge.ask(request_of(item)), ["a", "bad", "b"])]
    assert [results[0], results[2]] == ["yes", "yes"]
    assert isinstance(results[1], RemoteError)
    script = Script(lambda *_: httpx.Response(400, text="no"))
    judge = judge_of(script, concurrency=1)
    with pytest.raises(RemoteError):
        list(judge.map(lambda item: judge.ask(request_of(str(item))), range(40)))
    assert len(script.bodies) < 12


def test_an_estimate_comes_before_the_first_request_and_the_cap_holds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    requests = [request_of(f"{number} " + "word " * 100) for number in range(10)]
    most = Prices(10, 30).of(prompt_tokens(requests[0]), 16)
    script = in_turn("yes")
    judge = judge_of(script, spending=Spending(Prices(10, 30), cap=most * 10.01))
    judge.announce(requests)
    assert f"at most {most * 10:.2f}" in capsys.readouterr().err
    poor = judge_of(script, spending=Spending(Prices(10, 30), cap=most * 9))
    with pytest.raises(UsageError, match=r"over --max-cost.*Nothing was asked"):
        poor.announce(requests)
    assert not script.bodies
    judge.ask(requests[0])
    assert judge.describe()["cost"] == pytest.approx(Prices(10, 30).of(100, 10)), "what the server counted"


def test_a_request_that_would_break_the_cap_is_not_sent() -> None:
    one = Prices(1000, 1000).of(prompt_tokens(request_of()), 16)
    script = in_turn("yes")
    judge = judge_of(script, spending=Spending(Prices(1000, 1000), cap=one))
    judge.ask(request_of())
    with pytest.raises(UsageError, match="no reply is paid for twice"):
        judge.ask(request_of("What?"))
    assert len(script.bodies) == 1
    assert judge.ask(request_of()) == "yes", "what is known is free"


def test_a_cap_needs_prices() -> None:
    with pytest.raises(UsageError, match="--price-in"):
        Spending(cap=1.0)


def test_a_failed_request_gives_back_what_was_set_aside() -> None:
    one = Prices(1000, 1000).of(prompt_tokens(request_of()), 16)
    judge = judge_of(
        in_turn(httpx.Response(400, text="no"), "yes"), spending=Spending(Prices(1000, 1000), cap=one)
    )
    with pytest.raises(RemoteError):
        judge.ask(request_of())
    assert judge.ask(request_of()) == "yes"


def test_a_model_of_ours_judges_too_and_the_same_way_twice() -> None:
    import llava
    from llava.eval.judge.backends import EngineBackend

    backend = EngineBackend(llava.load(engine="torch"))
    body = request_of("What is it?").body("tiny") | {"max_tokens": 4, "temperature": 0.7}
    replies = [backend.complete(body, seed=5) for _ in range(2)]
    backend.close()
    assert replies[0] == replies[1]
    assert replies[0].num_prompt_tokens
    assert json.dumps(replies[0].text)
