"""Each key: its default is allowed, and values at and beyond the ends of its range."""

import pytest

from twctl.classes import Class
from twctl.config.keys import KEYS, Listen


@pytest.mark.parametrize("name", KEYS)
def test_a_default_is_a_value_that_a_file_may_give(name: str) -> None:
    """None means unset."""
    key = KEYS[name]
    assert key.default is None or key.parse(key.default) is not None


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("capacity.ipv4.local", [256, 4_194_304], [255, 4_194_305, 300.5, True, "300"]),
        ("time_wait.local", [0.1, 1000], [0, -1, 1000.5, "2"]),
        ("reconcile_interval", [0, 0.1, 86400], [0.05, 86401]),
        ("sysctl.tcp_tw_reuse", [0, 2], [3, -1, True]),
        ("pressure.port_headroom", [0, 0.01, 0.9], [0.005, 0.95]),
        ("blame.destinations", [0, 50], [51, 1.0]),
        ("force", [True, False], [0, "true"]),
        ("pins", ["/sys/fs/bpf/other"], ["relative", 7]),
        ("netns", [["blue", "green"]], [["a/b"], [""], "blue", [".."]]),
        ("classes.local", [["10.0.0.0/8", "fd00::/8"]], [["10.0.0.1/8"], ["10.0.0.1"], ["::ffff:10.0.0.0/104"]]),
    ],
)
def test_a_range_ends_where_it_says(name: str, good: list[object], bad: list[object]) -> None:
    """Both ends are inside, and other types are refused."""
    key = KEYS[name]
    for value in good:
        key.parse(value)
    for value in bad:
        with pytest.raises(ValueError):  # noqa: PT011 - some have a reason, some have none
            key.parse(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:9815", Listen("127.0.0.1", 9815)), ("[::1]:0", Listen("::1", 0)), ("metrics.example:1", None)],
)
def test_listen_is_written_as_it_is_read(text: str, expected: Listen | None) -> None:
    """With brackets around IPv6."""
    value = KEYS["listen"].parse(text)
    assert text == str(value)
    assert expected in {None, value}


def test_an_address_may_have_brackets_whatever_its_family() -> None:
    """A name may not."""
    parse = KEYS["listen"].parse
    assert [Listen("10.0.0.5", 9815), Listen("fd00::5", 9815)] == [*map(parse, ("[10.0.0.5]:9815", "[fd00::5]:9815"))]
    with pytest.raises(ValueError):  # noqa: PT011 - it has no text
        parse("[node]:9815")


def test_what_is_per_class_has_a_key_for_each_class() -> None:
    """In the order of nearness."""
    labels = [class_.label for class_ in Class]
    assert labels == [name.rpartition(".")[2] for name in KEYS if name.startswith("time_wait.")]
