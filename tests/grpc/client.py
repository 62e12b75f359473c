"""A gRPC client without generated code: messages are bytes.

    client.py ADDRESS SCENARIO

Says what came of it in lines of JSON; the last one is the outcome.
"""

import json
import sys
import threading
import time

import grpc

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # What the gateway answers is what the test sees, not what a second try gets.
    ("grpc.enable_retries", 0),
]
SERVICE = "/test.Test/"


def say(**facts):
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def status(error):
    return {
        "code": error.code().name,
        "details": error.details(),
        "trailing": {key: str(value) for key, value in error.trailing_metadata() or ()},
    }


def unary(channel, method, message=b"", timeout=10, **more):
    return channel.unary_unary(SERVICE + method)(message, timeout=timeout, **more)


def echo(channel):
    call = channel.unary_unary(SERVICE + "Echo")
    answer, facts = call.with_call(b"hello", timeout=10)
    fields = {key: str(value) for key, value in facts.initial_metadata()}
    trailing = {key: str(value) for key, value in facts.trailing_metadata()}
    say(answer=answer.decode(), initial=fields, trailing=trailing, code=facts.code().name)


def large(channel):
    message = bytes(range(256)) * (64 << 12)
    say(same=unary(channel, "Echo", message, timeout=60) == message, bytes=len(message))


def metadata(channel):
    answer = unary(channel, "Metadata", timeout=7, metadata=(("x-key", "v"), ("x-key-bin", b"\x00\xff")))
    say(**json.loads(answer))


def fail(channel):
    unary(channel, "Fail")


def hang(channel):
    unary(channel, "Hang")


def deadline(channel):
    unary(channel, "Hang", timeout=0.3)


def cancel(channel):
    """Leaves when told to."""
    call = channel.unary_unary(SERVICE + "Hang").future(b"", timeout=30)
    sys.stdin.readline()
    call.cancel()
    sys.stdin.readline()
    say(cancelled=call.cancelled())


def collect(channel):
    messages = (bytes(size) for size in (0, 1, 70_000, 3))
    say(sizes=json.loads(channel.stream_unary(SERVICE + "Collect")(messages, timeout=10)))


def expand(channel):
    asked = json.dumps({"count": 5, "size": 10_000}).encode()
    answers = channel.unary_stream(SERVICE + "Expand")(asked, timeout=10)
    say(numbers=[int.from_bytes(answer[:4], "big") for answer in answers], code=answers.code().name)


def drip(channel):
    """When each of the messages came."""
    start = time.monotonic()
    asked = json.dumps({"count": 4, "apart": 0.3}).encode()
    answers = channel.unary_stream(SERVICE + "Expand")(asked, timeout=10)
    say(times=[time.monotonic() - start for _ in answers])


def half(channel):
    answers = channel.unary_stream(SERVICE + "Half")(b"first", timeout=10)
    say(first=next(answers).decode())
    next(answers)


def torn(channel):
    """Messages for ten seconds."""
    asked = json.dumps({"count": 100, "apart": 0.1}).encode()
    answers = channel.unary_stream(SERVICE + "Expand")(asked, timeout=20)
    next(answers)
    say(event="first")
    for _ in answers:
        pass
    say(code=answers.code().name)


def chat(channel):
    """The next message is made of the answer to the last one."""
    waiting = []

    def messages():
        yield b"0"
        for _ in range(200):
            while not waiting:
                time.sleep(0.0005)
            yield str(int(waiting.pop()) + 1).encode()

    last = None
    answers = channel.stream_stream(SERVICE + "Chat")(messages(), timeout=30)
    for last in answers:
        waiting.append(last)
    say(last=int(last), code=answers.code().name)


def talk(channel):
    """Says one thing, and another when told to, on the same stream."""

    def messages():
        yield b"one"
        sys.stdin.readline()
        yield b"two"

    said = 0
    for _ in channel.stream_stream(SERVICE + "Chat")(messages(), timeout=30):
        said += 1
        say(event="heard")
    say(said=said)


def kept_open(channel, messages):
    """Says these things, and then nothing more on a stream that it does not end."""
    over = threading.Event()

    def said():
        yield from messages
        over.wait(30)

    try:
        for _ in channel.stream_stream(SERVICE + "Chat")(said(), timeout=30):
            say(event="heard")
    finally:
        over.set()


def mute(channel):
    kept_open(channel, [])


def listen(channel):
    kept_open(channel, [b"one"])


def refuse(channel):
    def messages():
        while True:
            yield b"more"
            time.sleep(0.01)

    next(channel.stream_stream(SERVICE + "Refuse")(messages(), timeout=10))


def flood(channel):
    """Reads one message, then nothing until told to, then everything."""
    answers = channel.unary_stream(SERVICE + "Flood")(b"2048", timeout=60)
    count = len(next(answers))
    say(event="first")
    sys.stdin.readline()
    count += sum(len(answer) for answer in answers)
    say(bytes=count)


def deaf(channel):
    """Sends as fast as it can, and says how much that was every MiB."""

    def messages():
        for n in range(1536):
            yield b"x" * 65536
            if n % 16 == 15:
                say(event="sent", mib=(n + 1) // 16)

    say(bytes=int(channel.stream_unary(SERVICE + "Deaf")(messages(), timeout=60)))


def side_by_side(channel):
    """A hundred calls at once."""
    calls = [
        channel.unary_unary(SERVICE + "Echo").future(str(n).encode(), timeout=30) for n in range(100)
    ]
    say(right=sum(call.result() == str(n).encode() for n, call in enumerate(calls)))


def main():
    address, scenario = sys.argv[1:3]
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        try:
            globals()[scenario](channel)
        except grpc.RpcError as error:
            say(**status(error))


main()
