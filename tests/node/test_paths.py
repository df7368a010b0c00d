"""Where the files of a home lie, and homes in every condition."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from atoll.node.errors import HomeError
from atoll.node.paths import Home, resolve_home, write_durably


def test_the_order_in_which_a_home_is_found(monkeypatch):
    for name in ("ATOLL_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(HomeError, match="--home"):
        resolve_home(None)
    monkeypatch.setenv("HOME", "/users/ada")
    assert resolve_home(None).root == Path("/users/ada/.local/share/atoll")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert resolve_home(None).root == Path("/users/ada/.local/share/atoll")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert resolve_home(None).root == Path("/data/atoll")
    monkeypatch.setenv("ATOLL_HOME", "/mine")
    assert resolve_home(None).root == Path("/mine")
    assert resolve_home("~/x").root == Path("/users/ada/x")
    assert resolve_home("a/../b").root == Path.cwd() / "b"


@pytest.mark.parametrize("name", ["short", "with space", "ü", "x" * 90, "d/" * 60])
def test_sockets_always_have_a_path_that_works(tmp_path, name):
    home = Home(tmp_path / name)
    home.prepare()
    home.open_runtime()
    for path in (home.api_socket, home.service_socket, Path(home.p2p_socket_prefix + "x" * 36)):
        assert len(os.fsencode(path)) <= 100
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    assert stat.S_IMODE(home.runtime.stat().st_mode) == 0o700
    assert home.runtime == Home(tmp_path / name).runtime, "a client finds the same folder"
    home.open_runtime()
    assert not list(home.runtime.iterdir()), "what a killed daemon left is gone"
    home.close_runtime()
    assert not home.runtime.exists()


def test_a_runtime_folder_that_somebody_planted_is_refused(tmp_path):
    home = Home(tmp_path / ("x" * 120))
    home.runtime.symlink_to(tmp_path)
    try:
        with pytest.raises(HomeError, match="not a folder of yours"):
            home.open_runtime()
    finally:
        home.runtime.unlink()


@pytest.mark.parametrize(("number", "remedy"), [
    (errno.EROFS, "writable place"), (errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"),
    (errno.EACCES, "permissions"),
])
def test_a_home_that_takes_no_files_is_refused_with_path_and_cause(tmp_path, monkeypatch, number, remedy):
    def refuse(path, data, mode=0o600):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("atoll.node.paths.write_durably", refuse)
    with pytest.raises(HomeError) as caught:
        Home(tmp_path / "h").prepare()
    assert str(tmp_path / "h") in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert remedy in str(caught.value)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_durably(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_current_run_is_read_strictly(home):
    assert home.current_run_id() is None
    home.current_run.write_text("ab" * 32 + "\n")
    assert home.current_run_id() == b"\xab" * 32
    for damaged in ("", "zz" * 32, "ab" * 31, "ü"):
        home.current_run.write_text(damaged)
        with pytest.raises(HomeError, match="damaged"):
            home.current_run_id()
