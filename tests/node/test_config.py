"""config.toml: defaults, mistakes, flags that are remembered, and a port that stays."""

import tomllib

import pytest

from atoll.node import config as node_config
from atoll.node.config import NodeConfig
from atoll.node.errors import ConfigError, UsageError


def test_an_absent_file_means_the_defaults(home):
    assert node_config.load(home) == NodeConfig()


@pytest.mark.parametrize(("content", "expected"), [
    (b"thread = 2", "did you mean `threads`?"),
    (b"ranks = 0", "at least 1"),
    (b"data = 'x'", "must be a list"),
    (b"bootstrap = ['1.2.3.4']", "multiaddr"),
    (b"bootstrap = ['/ip4/1.2.3.4/tcp/1']", "multiaddr"),
    (b"port = [", "not valid TOML"),
    (b"\xff\xfe", "not UTF-8"),
    (b"#" * (1 << 20) + b"#", "larger than"),
])
def test_a_mistake_is_named_with_the_file(home, content, expected):
    home.config.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        node_config.load(home)
    assert expected in str(caught.value)
    assert str(home.config) in str(caught.value)


def test_flags_are_checked_and_remembered_beside_a_persons_comments(home):
    home.config.write_text("# mine\nquic = true  # faster here\n")
    flags = {"port": 4001, "data": ("/d/a", "/d/b"), "ranks": 2}
    config = node_config.override(node_config.load(home), flags)
    node_config.remember(home, flags)
    assert node_config.load(home) == config
    assert config.quic
    assert config.data == ("/d/a", "/d/b")
    assert "# faster here" in home.config.read_text()
    with pytest.raises(UsageError, match="`ranks` is 0"):
        node_config.override(config, {"ranks": 0})


def test_every_default_can_be_written_and_read_again(home):
    from atoll.protocol import settings

    node_config.remember(home, settings.tree(NodeConfig()))
    assert node_config.load(home) == NodeConfig()
    assert set(tomllib.loads(home.config.read_text())) == set(settings.tree(NodeConfig()))


def test_a_picked_port_is_kept_and_a_wanted_one_wins(home):
    port = node_config.choose_port(home, NodeConfig())
    assert 20_000 <= port < 32_000
    assert node_config.choose_port(home, NodeConfig()) == port
    assert node_config.choose_port(home, NodeConfig(port=4001)) == 4001
    home.port.write_text("nonsense")
    assert 20_000 <= node_config.choose_port(home, NodeConfig()) < 32_000


def test_only_addresses_that_this_machine_has_are_listened_on():
    assert node_config.listen_addresses(NodeConfig(loopback=True), 4001) == ("/ip4/127.0.0.1/tcp/4001",)
    found = node_config.listen_addresses(NodeConfig(hosts=("127.0.0.1", "203.0.113.77"), quic=True), 4001)
    assert found == ("/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/udp/4001/quic-v1")
    with pytest.raises(ConfigError, match=r"203\.0\.113\.77"):
        node_config.listen_addresses(NodeConfig(hosts=("203.0.113.77",)), 4001)


def test_data_is_remembered_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/users/ada")
    (tmp_path / "link").symlink_to("/elsewhere")
    assert node_config.absolute_data(("a/../b", "link", "~/c", "/d"), tmp_path) == (
        str(tmp_path / "b"), str(tmp_path / "link"), "/users/ada/c", "/d",
    )


def test_threads_are_shared_out_between_ranks(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert NodeConfig().rank_threads() == 8
    assert NodeConfig(ranks=3).rank_threads() == 2
    assert NodeConfig(ranks=64).rank_threads() == 1
    assert NodeConfig(threads=5).rank_threads() == 5
