from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.request

import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from anyvla.play.server import PAGE, PageServer
from anyvla.play.visit_pool import VisitPool
from anyvla.serving.listening import bind
from tests.play import fakes


class FakePool(VisitPool):
    """A pool whose robot is a cart on a line."""

    def __init__(self, names=("the cart",), gains=(1.0,), error=None):
        super().__init__(None, "line", "test/line", [], "cpu", False)
        self._names, self.gains, self._error = names, gains, error
        self.robots = []

    def prepare(self):
        if self._error:
            raise self._error
        self._facts = fakes.FACTS
        self._spare.append(self._start_robots())
        self._policies = fakes.Policies(*self.gains)
        self._stopped.wait()

    def _start_robots(self):
        self.robots.append([fakes.CartRobot() for _ in self.gains])
        return self.robots[-1]

    def describe(self):
        return super().describe() | {"policies": list(self._names)}


@contextlib.contextmanager
def serving(pool, visits=2):
    """Serve in a thread. Yield the port."""
    sockets = bind("127.0.0.1", 0)
    ready, box = threading.Event(), {}

    async def run():
        box["server"] = PageServer(pool, visits, ("127.0.0.1", "localhost", "[::1]"))
        box["loop"] = asyncio.get_running_loop()
        await box["server"].run(sockets, ready.set)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(10)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        box["loop"].call_soon_threadsafe(box["server"].stop)
        thread.join(10)
        assert not thread.is_alive()


def get(port, path, **headers):
    """Return status, headers and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def connect(port, **keys):
    keys = {"origin": f"http://127.0.0.1:{port}", "proxy": None, "open_timeout": 10, **keys}
    return websockets.sync.client.connect(f"ws://127.0.0.1:{port}/live", **keys)


def enter_when_free(port):
    """Make a visit as soon as there is a place: it becomes free a moment after a page was closed."""
    end = time.monotonic() + 20
    while True:
        try:
            with connect(port) as page:
                read(page, "state")
            return
        except ConnectionClosed:
            assert time.monotonic() < end
            time.sleep(0.02)


def read(page, kind):
    """Return the next text of a kind."""
    while True:
        data = page.recv(timeout=10)
        if isinstance(data, str) and json.loads(data)["is"] == kind:
            return json.loads(data)


@pytest.fixture(scope="module")
def port():
    with serving(FakePool()) as port:
        yield port


def test_the_page_and_all_its_files_are_served(port):
    status, headers, body = get(port, "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    for file in ("report.css", "play.css", "main.js"):
        assert file.encode() in body
    for file in PAGE.iterdir():
        status, headers, body = get(port, f"/{file.name}")
        assert (status, body) == (200, file.read_bytes())
    assert get(port, "/main.js")[1]["Content-Type"].startswith("text/javascript")
    assert get(port, "/report.css")[0] == 200


@pytest.mark.parametrize("path", ["/nothing", "/../server.py", "/%2e%2e/server.py", "//etc/passwd", "/page/main.js"])
def test_no_other_file_is_served(port, path):
    assert get(port, path)[0] == 404


def test_another_name_for_this_machine_is_refused(port):
    """A page of another site may let its own name point here (DNS rebinding)."""
    assert get(port, "/", Host=f"evil.example:{port}")[0] == 421
    assert get(port, "/", Host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize("origin", [None, "http://evil.example", "http://127.0.0.1:1", "null"])
def test_pages_of_other_sites_cannot_connect(port, origin):
    with pytest.raises(InvalidStatus) as refused, connect(port, origin=origin):
        pass
    assert refused.value.response.status_code == 403


def test_a_visit_gets_facts_pictures_and_goals(port):
    with connect(port) as page:
        hello = read(page, "hello")
        assert [scene["scene"] for scene in hello["scenes"]] == ["cart", "box"]
        assert hello["groups"] == [{"name": "cart", "dims": ["cart"], "unit": "m"}]
        read(page, "state")
        page.send('{"do": "instruct", "text": "go left"}')
        while read(page, "state")["outcomes"] != ["cart-left"]:
            pass


def test_bad_commands_get_an_error_and_the_visit_goes_on(port):
    with connect(port) as page:
        for bad in (b"\x00", "{", '{"do": "fly"}', '{"do": "reset", "seed": 1e9}'):
            page.send(bad)
            assert read(page, "error")["text"]
        page.send('{"do": "reset", "seed": 4}')
        while read(page, "state")["seed"] != 4:
            pass


def test_a_message_that_is_too_long_ends_the_visit_only(port):
    with connect(port) as page:
        read(page, "hello")
        page.send("x" * 5000)
        with pytest.raises(ConnectionClosed):
            read(page, "never")
    with connect(port) as page:
        read(page, "hello")


def test_too_many_pages_are_told_to_wait():
    with serving(FakePool(), visits=1) as port:
        with connect(port) as first:
            read(first, "hello")
            with connect(port) as second, pytest.raises(ConnectionClosed) as closed:
                second.recv(timeout=10)
            assert closed.value.rcvd.reason == "busy"
        for _ in range(50):  # the place is free once the first visit has ended
            with contextlib.suppress(ConnectionClosed), connect(port) as third:
                read(third, "hello")
                break
        else:
            pytest.fail("the place stayed taken")


def test_one_set_of_robots_is_kept_and_others_are_closed():
    pool = FakePool()
    with serving(pool) as port:
        with connect(port) as first, connect(port) as second:
            read(first, "state")
            read(second, "state")
        enter_when_free(port)
        assert len(pool.robots) == 2
    assert all(robot.closed for robots in pool.robots for robot in robots)


def test_the_error_of_a_simulator_ends_the_server():
    async def run():
        await PageServer(FakePool(error=ValueError("not installed")), 1, None).run(bind("127.0.0.1", 0))

    with pytest.raises(ValueError, match="not installed"):
        asyncio.run(run())
