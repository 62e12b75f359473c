"""A gRPC origin without generated code: messages are bytes.

    origin.py [CERTIFICATE KEY]

Says `{"port": N}` first, and then one line of JSON for everything that a test may wait for.
"""

import json
import sys
import threading
import time
from concurrent import futures

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
PIECE = b"x" * 65536


def say(**facts):
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def echo(message, context):
    context.send_initial_metadata((("x-initial", "i"),))
    context.set_trailing_metadata((("x-trailing", "t"), ("x-trailing-bin", b"\x00\xff")))
    return message


def metadata(message, context):
    """What the client's call looks like from here."""
    fields = {key: str(value) for key, value in context.invocation_metadata()}
    left = context.time_remaining()
    return json.dumps({"fields": fields, "left": left}).encode()


def fail(message, context):
    """Without a message and before any metadata: a trailers-only answer."""
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not ü 100%")


def collect(messages, context):
    sizes = [len(message) for message in messages]
    return json.dumps(sizes).encode()


def expand(message, context):
    """So many messages of such a size, so far apart."""
    asked = json.loads(message)
    for n in range(asked["count"]):
        time.sleep(asked.get("apart", 0))
        yield n.to_bytes(4, "big") + bytes(asked.get("size", 0))


def half(message, context):
    """One message, and then a failure."""
    yield message
    context.abort(grpc.StatusCode.DATA_LOSS, "half")


def chat(messages, context):
    for message in messages:
        yield message


def refuse(messages, context):
    """Ends while the client still sends."""
    next(messages)
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
    yield b""


def hang(message, context):
    """Answers nothing until the call is cancelled."""
    over = threading.Event()
    context.add_callback(over.set)
    say(event="asked")
    over.wait(30)
    say(event="over", active=context.is_active())
    return b""


def deaf(messages, context):
    """Reads nothing until the test says so, by a line on standard input; then everything."""
    say(event="asked")
    sys.stdin.readline()
    return str(sum(len(message) for message in messages)).encode()


def flood(message, context):
    """Sends as fast as it can, and says how much that was every MiB."""
    for n in range(int(message)):
        yield PIECE
        if n % 16 == 15:
            say(event="sent", mib=(n + 1) // 16)


UNARY = {"Echo": echo, "Metadata": metadata, "Fail": fail, "Hang": hang}
CLIENT = {"Collect": collect, "Deaf": deaf}
SERVER = {"Expand": expand, "Flood": flood, "Half": half}
BOTH = {"Chat": chat, "Refuse": refuse}


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=OPTIONS)
    methods = {}
    methods.update({name: grpc.unary_unary_rpc_method_handler(f) for name, f in UNARY.items()})
    methods.update({name: grpc.stream_unary_rpc_method_handler(f) for name, f in CLIENT.items()})
    methods.update({name: grpc.unary_stream_rpc_method_handler(f) for name, f in SERVER.items()})
    methods.update({name: grpc.stream_stream_rpc_method_handler(f) for name, f in BOTH.items()})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", methods),))
    if len(sys.argv) > 1:
        certificate, key = (open(name, "rb").read() for name in sys.argv[1:3])
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say(port=port)
    server.wait_for_termination()


main()
