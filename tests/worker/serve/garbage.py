"""Things that somebody may have put into a broker's queue, and that are no messages."""

from __future__ import annotations

import base64
import json
import pickle

QUEUE = "sdbatch.odd"
PROPERTIES = {
    "correlation_id": "x1",
    "delivery_mode": 2,
    "delivery_info": {"exchange": "", "routing_key": QUEUE},
    "priority": 0,
    "body_encoding": "base64",
    "delivery_tag": "tag-x1",
}
HEADERS = {"lang": "py", "task": "worker.render_shard", "id": "x1", "retries": 0}


def envelope(**changes: object) -> str:
    """As Celery sends it; changes: of its outermost fields."""
    fields = {
        "body": "e30=",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": HEADERS,
        "properties": PROPERTIES,
    }
    return json.dumps(fields | changes)


def with_properties(**changes: object) -> str:
    return envelope(properties=PROPERTIES | changes)


def with_headers(**changes: object) -> str:
    return envelope(headers=HEADERS | changes, body=_encoded(b"[[], {}, {}]"))


def with_body(body: bytes, **changes: object) -> str:
    return envelope(body=_encoded(body), **changes)


def _encoded(body: bytes) -> str:
    return base64.b64encode(body).decode()


ENVELOPES = {
    "text": b"not json",
    "bytes": b"\xff\xfe\x00",
    "number": b"7",
    "list": b"[1,2]",
    "null": b"null",
    "empty object": b"{}",
    "nested": b"[" * 100_000,
    "odd type": b'{"__type__": "uuid", "__value__": 7}',
    "no properties": envelope(properties=None),
    "no headers": envelope(headers=None),
    "headers as a list": envelope(headers=[1]),
    "body as a number": envelope(body=7),
    "unknown encoding": with_properties(body_encoding="rot13"),
    "no base64": envelope(body="a"),
    "no delivery info": with_properties(delivery_info={}),
    "tag as a list": with_properties(delivery_tag=[1]),
    "tag as null": with_properties(delivery_tag=None),
}
"""What goes wrong before the task is known."""

BODIES = {
    "a number": with_body(b"7"),
    "null": with_body(b"null"),
    "a short list": with_body(b"[1, 2]"),
    "no JSON": with_body(b"{not json"),
    "nested": with_body(b"[" * 100_000),
    "a pickle": with_body(
        pickle.dumps([[], {"message": 1}, {}]),
        **{"content-type": "application/x-python-serialize"},
    ),
    "other arguments": with_body(b"[[1, 2, 3], {}, {}]"),
    "no body": envelope(body=None),
    "no task": envelope(headers={}),
    "another task": with_headers(task="os.system"),
    "a task as a list": with_headers(task=[1]),
    "another task without an id": envelope(headers={"task": "os.system"}),
    "no id": envelope(headers={"task": HEADERS["task"]}),
    "an odd time": with_headers(eta="soon"),
    "an odd age": with_headers(expires=[]),
    "odd retries": with_headers(retries="many"),
    "an odd time limit": with_headers(timelimit=7),
    "a job that nobody knows": with_body(
        b'[[], {"message": {"job": "nobody", "shard": 0, "start": 0, "stop": 4}}, {}]'
    ),
}
"""What Celery or the task refuses; each with a delivery tag of its own would be one too many."""
