"""What Schemathesis cannot know of this API: MessagePack, JSON Lines, and what no schema can say."""

import json
import zlib

import msgspec
import schemathesis

MSGPACK, LINES = (
    "application/msgpack",
    ("application/x-ndjson", "application/jsonl", "application/x-jsonlines"),
)

# Why a body or query that fits the schema may be answered 400. (words of the refusal, end of its field)
BEYOND_SCHEMA = (
    ("printable", ""),  # JSON Schema has no word for the characters that are not, beyond U+00FF
    ("control or unpaired", ""),
    ("is longer than", ""),  # nested names are joined with dots, and have one limit together
    ("is given twice", ""),  # an id as text and as an ad; a.b and {a: {b}}
    ("nested deeper", ""),  # the schema of `context`, `features` and `creative` stops at their names
    ("must be a non-empty string", ""),
    ("a list may hold strings only", ""),
    ("not a string, number, boolean", ""),
    ("must be a number between", ""),
    ("more than 256 features", ""),
    ("may hold JSON only", ""),  # integers of more than 64 bits in a creative
    ("well-formed", "body"),  # numbers and nesting that no reader takes
    ("Number out of range", ""),
    ("is not in the catalog", "ads"),
    ("given in the context too", "placement"),
    ("must be after starts", "ends"),
    ("absolute http or https URL", "landing_url"),  # ports and brackets
    ("another one than in the path", "id"),
    ("may have at most 16384 bytes", "creative"),
    ("may have at most 1024 bytes", "attributes"),
    ("more than 16 attributes", "attributes"),  # nested names are joined, and each word of a list is one
    ("a name is longer", "attributes"),
    ("has no name", "query"),
    ("may not end in /events", ""),
    ("a day ahead of the server's clock", "at"),
    ("Expected `int`, got `float`", "slots"),  # 1.0 is an integer to JSON Schema, and not in MessagePack
    ("Expected `int", "offset"),
    ("Expected `int", "seed"),
    ("there is no policy", ""),  # what policies and options there are, is in docs/policies.md
    ("wanted name:option=value", ""),
    ("has no option", ""),
    ("must be after", ""),  # a window that ends before it begins
    ("there is nothing before a window", "warm"),
)


@schemathesis.serializer(MSGPACK)
def msgpack(ctx, value):
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:  # integers of more than 64 bits
        return msgspec.msgpack.encode(json.loads(json.dumps(value), parse_int=float))


@schemathesis.deserializer(MSGPACK)
def from_msgpack(ctx, response):
    return msgspec.msgpack.decode(response.content)


@schemathesis.serializer(*LINES)
def lines(ctx, value):
    return "\n".join(map(json.dumps, value if isinstance(value, list) else [value])).encode()


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """JSON Lines hold what the array holds; OpenAPI 3.1 can only call them text."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            content = operation.get("requestBody", {}).get("content", {})
            for media in content.keys() & set(LINES):
                content[media] = content["application/json"]


@schemathesis.hook.apply_to(path="/policies/{id}/promote")
def map_path_parameters(context, path_parameters):
    """Half of the names are those of policies, which nobody would guess."""
    name = str(path_parameters.get("id", ""))
    place = zlib.crc32(name.encode("utf-8", "replace")) % 4
    return path_parameters if place > 1 else {**path_parameters, "id": ("thompson", "linucb")[place]}


@schemathesis.hook
def before_call(context, case, kwargs):
    """Half of the replies come as MessagePack."""
    if zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode("utf-8", "replace")) % 2:
        case.headers["Accept"] = MSGPACK


@schemathesis.check
def what_fits_the_contract_is_granted(ctx, response, case):
    """As Schemathesis' own positive_data_acceptance; but 400 is fine for what the schema cannot say."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code != 400:
        return
    packed = MSGPACK in response.headers.get("content-type", [""])[0]
    error = (msgspec.msgpack if packed else msgspec.json).decode(response.content)["error"]
    known = any(words in error["message"] and error["field"].endswith(end) for words, end in BEYOND_SCHEMA)
    assert known, f"fits the contract and was refused: {error}"
