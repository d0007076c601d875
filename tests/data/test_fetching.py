import gzip
import os
import socket
import threading
from pathlib import Path

import pooch
import pytest

from neuropil.data import DataError, fetch, load
from neuropil.data.folders import cache_folder

LABELS = "t10k-labels-idx1-ubyte.gz"  # the last file to be fetched


def left_over(folder: Path) -> set[str]:
    """Names of all files below a folder, without the lock."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def serve(server, tiny, under: str = "") -> str:
    for name, packed in tiny.files.items():
        server.put(f"{under}/{name}", packed)
    return server.address + under


@pytest.fixture
def closed() -> str:
    """Address of a port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_downloads_once_into_the_cache(server, tiny):
    tiny.served_from(serve(server, tiny))
    folder = fetch("tiny")
    assert folder == cache_folder() / "tiny"
    assert left_over(cache_folder()) == set(tiny.files)
    assert all((folder / name).read_bytes() == packed for name, packed in tiny.files.items())
    assert load("tiny").source == "cache"
    assert len(server.requests) == len(tiny.files)


def test_load_downloads(server, tiny):
    tiny.served_from(serve(server, tiny))
    assert load("tiny").y_test.tolist() == [0, 1, 0, 1]


def test_a_shared_folder_spares_the_download(server, tiny, monkeypatch, tmp_path):
    tiny.served_from(serve(server, tiny))
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path / "shared"))
    folder = tiny.write(tmp_path / "shared" / "tiny")
    assert fetch("tiny") == folder
    assert not server.requests


def test_only_what_is_missing_is_downloaded(server, tiny):
    tiny.served_from(serve(server, tiny))
    (tiny.write(cache_folder() / "tiny") / LABELS).unlink()
    fetch("tiny")
    assert server.requests == [f"/{LABELS}"]


def test_progress_is_shown_on_request(server, tiny, capfd):
    tiny.served_from(serve(server, tiny))
    fetch("tiny", progress=True)
    assert LABELS in capfd.readouterr().err


def test_no_progress_is_shown_unasked(server, tiny, capfd):
    tiny.served_from(serve(server, tiny))
    fetch("tiny")
    assert capfd.readouterr() == ("", "")


def test_a_mirror_stands_in_for_a_server_that_is_away(server, tiny, closed):
    tiny.served_from(closed, serve(server, tiny))
    fetch("tiny")
    assert left_over(cache_folder()) == set(tiny.files)


def test_a_mirror_stands_in_for_wrong_content(server, tiny):
    good, bad = serve(server, tiny, "/good"), serve(server, tiny, "/bad")
    server.put(f"/bad/{LABELS}", tiny.files["train-labels-idx1-ubyte.gz"])
    tiny.served_from(bad, good)
    folder = fetch("tiny")
    assert (folder / LABELS).read_bytes() == tiny.files[LABELS]


def failure(tiny, *addresses: str) -> str:
    """Fetch, fail, leave no part of the file behind, and name file, addresses and what to do."""
    tiny.served_from(*addresses)
    with pytest.raises(DataError) as caught:
        fetch("tiny")
    message = str(caught.value)
    assert LABELS in message
    assert all(f"{address}/{LABELS}" in message for address in addresses)
    assert "set NEUROPIL_DATA to a folder whose subfolder tiny has" in message
    assert LABELS not in left_over(cache_folder())
    assert not any(name.endswith(".part") for name in left_over(cache_folder()))
    return message


def test_every_server_away(tiny, closed):
    (tiny.write(cache_folder() / "tiny") / LABELS).unlink()
    assert "refused" in failure(tiny, closed)


def test_file_not_there(server, tiny):
    (tiny.write(cache_folder() / "tiny") / LABELS).unlink()
    assert "404" in failure(tiny, server.address)
    assert len(server.requests) == 1, "asking again does not help"


def test_server_out_of_order_is_asked_again(server, tiny):
    serve(server, tiny)
    server.put(f"/{LABELS}", b"", status=503)
    assert "503" in failure(tiny, server.address)
    assert server.requests.count(f"/{LABELS}") == 2


def test_connection_cut_short(server, tiny):
    packed = tiny.files[LABELS]
    serve(server, tiny)
    server.put(f"/{LABELS}", packed[:-5], promise=len(packed))
    failure(tiny, server.address)


def test_file_truncated_at_the_server(server, tiny):
    serve(server, tiny)
    server.put(f"/{LABELS}", tiny.files[LABELS][:-5])
    assert "is truncated" in failure(tiny, server.address)


def test_wrong_content(server, tiny):
    serve(server, tiny)
    server.put(f"/{LABELS}", tiny.files["train-labels-idx1-ubyte.gz"])
    assert "is too long" in failure(tiny, server.address)


def test_wrong_hash(server, tiny, encode_idx):
    serve(server, tiny)
    server.put(f"/{LABELS}", gzip.compress(encode_idx(1 - tiny.arrays[LABELS])))
    assert "holds something else" in failure(tiny, server.address)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_no_part(server, tiny, monkeypatch, error):
    def half(self, url, output_file, pooch):
        Path(output_file).write_bytes(b"half")
        raise error

    tiny.served_from(serve(server, tiny))
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", half)
    with pytest.raises(error):
        fetch("tiny")
    assert left_over(cache_folder()) == set()


def test_the_leftover_of_a_killed_process_is_replaced(server, tiny):
    tiny.served_from(serve(server, tiny))
    folder = cache_folder() / "tiny"
    folder.mkdir(parents=True)
    (folder / f".{LABELS}.part").write_bytes(b"half" * 1000)
    fetch("tiny")
    assert left_over(folder) == set(tiny.files)


def test_who_comes_second_waits_for_the_first(server, tiny):
    tiny.served_from(serve(server, tiny))
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(fetch("tiny"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [cache_folder() / "tiny"] * 4
    assert len(server.requests) == len(tiny.files)


def test_a_cache_that_cannot_be_made(server, tiny, monkeypatch, tmp_path):
    # A file where a folder is wanted: refused to root as well.
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "file" / "cache"))
    tiny.served_from(serve(server, tiny))
    with pytest.raises(DataError, match=r"Cannot write tiny into the cache .*Set NEUROPIL_CACHE .*NEUROPIL_DATA"):
        fetch("tiny")
    assert not server.requests
    assert left_over(tmp_path) == {"file"}


def test_a_disk_that_fills_up(server, tiny, monkeypatch):
    def full(self, url, output_file, pooch):
        Path(output_file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    tiny.served_from(serve(server, tiny))
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    with pytest.raises(DataError, match=r"No space left on device.*Set NEUROPIL_CACHE"):
        fetch("tiny")
    assert left_over(cache_folder()) == set()


def test_a_read_only_cache(server, tiny):
    tiny.served_from(serve(server, tiny))
    cache_folder().mkdir()
    cache_folder().chmod(0o500)
    if os.access(cache_folder(), os.W_OK):
        pytest.skip("modes do not bind this user (root)")
    with pytest.raises(DataError, match="Set NEUROPIL_CACHE to a folder that can be written"):
        fetch("tiny")
    assert not server.requests
    assert left_over(cache_folder()) == set()


def test_embedded_sets_have_nothing_to_fetch():
    with pytest.raises(ValueError, match="'digits' lies inside scikit-learn"):
        fetch("digits")
