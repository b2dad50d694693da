"""Atlas on this machine: a proxy in front of a MongoDB server without search, which adds it.

Everything is passed on as it came, byte for byte, but for the commands of Vector Search, which are
answered here. The search index follows the collection at once, or not at all while `frozen`: what
lies between is a matter of time on Atlas, and of a test's next line here. Connections can be made
to break and commands to fail at chosen moments.
"""

import contextlib
import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from bson.codec_options import CodecOptions
from pymongo import MongoClient

from tests.bot.archive.atlas import wire
from tests.bot.archive.atlas.vector_search import (
    Document,
    SearchError,
    check_definition,
    nearest,
    project,
)

# A fault looks at a command and says what to answer instead; None for another one's turn.
Refusal = Callable[[Document], Document | None]


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with the next commands of a name.

    Attributes:
        command: The name.
        times: How often still.
        drop: "before" breaks the connection before the server hears of the command, "after" when
            it has carried it out and before the driver hears of that.
        refusal: What the driver is told instead, and nothing is carried out.
        half: Every second write is carried out, and the others are refused by a server that is
            shutting down.
    """

    command: str
    times: int
    drop: str = ""
    refusal: Refusal | None = None
    half: bool = False


class AtlasProxy:
    """Listens on this machine. A context manager; may be stopped and started again."""

    def __init__(self, server: str, *, port: int = 0) -> None:
        """Args: the server's address as HOST:PORT, and where to listen (0 for a free port)."""
        host, _, number = server.partition(":")
        self._server = (host, int(number))
        self.port = port
        # Search indexes by namespace and name, as `$listSearchIndexes` shows them.
        self.indexes: dict[str, dict[str, Document]] = defaultdict(dict)
        self.building = False
        self.searching = True
        self.commands: list[Document] = []
        self._seen: dict[str, list[Document]] | None = None
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    @property
    def uri(self) -> str:
        # Polled, since a primary that only pretends to step down tells its watchers nothing new.
        monitoring = "serverMonitoringMode=poll&heartbeatFrequencyMS=500"
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true&{monitoring}"

    @property
    def connected(self) -> int:
        """How many connections there are, to drivers and to the server."""
        with self._lock:
            return len(self._connections)

    def freeze(self) -> None:
        """From now on the search indexes learn nothing new."""
        self._seen = {namespace: self._documents(namespace) for namespace in self.indexes}

    def follow(self) -> None:
        """The search indexes catch up, and follow again."""
        self._seen = None

    def finish(self) -> None:
        """All search indexes are built, and later ones will be at once."""
        self.building = False
        for indexes in self.indexes.values():
            for index in indexes.values():
                index.update(status="READY", queryable=True, serving=index["latestDefinition"])

    def fail(self, command: str, *, times: int = 1, **how: Any) -> None:
        """Arms a fault; see `Fault`."""
        with self._lock:
            self._faults.append(Fault(command=command, times=times, **how))

    def calm(self) -> None:
        """Forgets what was to go wrong, and what was asked so far."""
        with self._lock:
            self._faults.clear()
            self.commands.clear()

    def searches(self) -> list[Document]:
        """The bodies of all `$vectorSearch` stages so far."""
        stages = [one["pipeline"][0] for one in self.commands if one.get("pipeline")]
        return [stage["$vectorSearch"] for stage in stages if "$vectorSearch" in stage]

    def start(self) -> None:
        """Listens, on the port of the last time if there was one."""
        self._backend: MongoClient[Document] = MongoClient(
            *self._server, directConnection=True, tz_aware=True
        )
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._stopping = False
        self._thread = threading.Thread(target=self._accept, name="atlas-proxy")
        self._thread.start()

    def stop(self) -> None:
        """Breaks every connection and listens no more."""
        self._stopping = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_connections()
        self._thread.join()
        self._backend.close()

    def break_connections(self) -> None:
        """Ends what is connected now, in the middle of whatever it is doing."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _accept(self) -> None:
        handlers = []
        while True:
            try:
                driver, _ = self._listener.accept()
            except OSError:
                break
            handler = threading.Thread(target=self._serve, args=(driver,), name="atlas-connection")
            handler.start()
            handlers.append(handler)
        self.break_connections()
        for handler in handlers:
            handler.join()

    def _serve(self, driver: socket.socket) -> None:
        with driver, self._kept(driver):
            try:
                server = socket.create_connection(self._server)
            except OSError:
                return  # the server is gone, and so is this connection
            with server, self._kept(server):
                back = threading.Thread(target=_pass_on, args=(server, driver), name="atlas-back")
                back.start()
                with contextlib.suppress(OSError):
                    self._talk(driver, server)
                for end in (server, driver):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                back.join()

    @contextlib.contextmanager
    def _kept(self, connection: socket.socket) -> Any:
        with self._lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _talk(self, driver: socket.socket, server: socket.socket) -> None:
        while (message := wire.receive(driver)) is not None and not self._stopping:
            command = message.command
            if command is None:
                server.sendall(message.raw)
                continue
            self.commands.append(command)
            fault = self._fault(command)
            if fault is not None and fault.drop == "before":
                return
            if fault is not None and fault.drop == "after":
                self._carry_out(command)
                return
            answer = self._answered(command, fault)
            if answer is None:
                server.sendall(message.raw)
            else:
                driver.sendall(wire.reply(message.request_id, answer))

    def _fault(self, command: Document) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.command in command and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def _half_done(self, command: Document) -> Document:
        updates = command["updates"]
        done: Document = {"ok": 1.0, "n": 0, "nModified": 0}
        if updates[1::2]:
            done = self._carry_out(command | {"updates": updates[1::2]})
        upserted = [one | {"index": 2 * one["index"] + 1} for one in done.get("upserted", ())]
        errors = [
            {"index": index, "code": 91, "errmsg": "shutting down"}
            for index in range(0, len(updates), 2)
        ]
        return done | {"upserted": upserted, "writeErrors": errors}

    def _carry_out(self, command: Document) -> Document:
        """Does it without the driver, which hears nothing of it by this."""
        kept = {
            name: value
            for name, value in command.items()
            if name not in ("$db", "lsid", "$clusterTime", "txnNumber", "$readPreference")
        }
        return self._backend[command["$db"]].command(kept)

    def _answered(self, command: Document, fault: Fault | None) -> Document | None:
        """An answer of our own; None to let the server answer."""
        if fault is not None and fault.half:
            return self._half_done(command)
        refusal = fault.refusal(command) if fault is not None and fault.refusal else None
        if refusal is not None:
            return refusal
        try:
            return self._search(command)
        except SearchError as error:
            return {"ok": 0.0, "errmsg": error.message, "code": error.code, "codeName": "Error"}

    def _search(self, command: Document) -> Document | None:
        database = command.get("$db", "")
        if "aggregate" in command and command["pipeline"]:
            namespace = f"{database}.{command['aggregate']}"
            stage, *rest = command["pipeline"]
            if "$vectorSearch" in stage:
                return _cursor(namespace, self._found(namespace, stage["$vectorSearch"], rest))
            if "$listSearchIndexes" in stage:
                self._needs_search("Search Index Management service")
                name = stage["$listSearchIndexes"].get("name")
                known = self.indexes[namespace].values()
                shown = [_listed(one) for one in known if name in (None, one["name"])]
                return _cursor(namespace, shown)
        for name, handle in (
            ("createSearchIndexes", self._create),
            ("updateSearchIndex", self._update),
            ("dropSearchIndex", self._drop),
        ):
            if name in command:
                self._needs_search("Search Index Management service")
                collection = command[name]
                if collection not in self._backend[database].list_collection_names():
                    raise SearchError(26, f"Collection '{database}.{collection}' does not exist.")
                return handle(f"{database}.{collection}", command) | {"ok": 1.0}
        return None

    def _needs_search(self, what: str) -> None:
        if not self.searching:
            raise SearchError(125, f"Error connecting to {what}.")

    def _found(self, namespace: str, stage: Document, rest: list[Document]) -> list[Document]:
        if not self.searching:
            raise SearchError(6, "Error connecting to localhost:28000")
        index = self.indexes[namespace].get(stage.get("index", "default"))
        if index is None:
            return []
        if not index["queryable"]:
            raise SearchError(
                8, f"cannot query vector index {index['name']} while in state INITIAL_SYNC"
            )
        serving = {"type": index["type"], "latestDefinition": index["serving"]}
        now = {document["_id"]: document for document in self._documents(namespace)}
        seen = now.values() if self._seen is None else self._seen.get(namespace, [])
        # As mongod does it: the index gives ids, and what they stand for is looked up afterwards.
        found = [(now[id_], score) for id_, score in nearest(stage, serving, seen) if id_ in now]
        documents = [document for document, _ in found]
        for one in rest:
            if set(one) != {"$project"}:
                raise SearchError(238, f"this miniature has no stage {set(one)}")
            documents = [project(document, one["$project"], score) for document, score in found]
        return documents

    def _documents(self, namespace: str) -> list[Document]:
        database, _, collection = namespace.partition(".")
        options: CodecOptions[Document] = CodecOptions(tz_aware=True)
        return list(self._backend[database].get_collection(collection, options).find())

    def type_in(self, namespace: str, name: str, definition: Document) -> None:
        """Makes a vector search index as somebody does on the cluster's page."""
        asked = {"name": name, "type": "vectorSearch", "definition": definition}
        self._create(namespace, {"indexes": [asked]})

    def _create(self, namespace: str, command: Document) -> Document:
        created = []
        for asked in command["indexes"]:
            name, kind = asked.get("name", "default"), asked.get("type", "search")
            check_definition(kind, asked["definition"])
            known = self.indexes[namespace].get(name)
            if known is not None and known["latestDefinition"] != asked["definition"]:
                raise SearchError(68, f"Index {name} already exists with a different definition.")
            if known is None:
                self.indexes[namespace][name] = {
                    "id": f"{len(self.indexes[namespace]):024x}",
                    "name": name,
                    "type": kind,
                    "status": "PENDING" if self.building else "READY",
                    "queryable": not self.building,
                    "latestDefinition": asked["definition"],
                    "latestDefinitionVersion": {"version": 0},
                    "serving": asked["definition"],
                }
            created.append({"id": self.indexes[namespace][name]["id"], "name": name})
        return {"indexesCreated": created}

    def _update(self, namespace: str, command: Document) -> Document:
        index = self._named(namespace, command)
        kind = "vectorSearch" if "fields" in command["definition"] else "search"
        if kind != index["type"]:
            raise SearchError(197, "An index's type cannot be changed")
        check_definition(kind, command["definition"])
        index["latestDefinition"] = command["definition"]
        # The old definition serves until the new one is built.
        if self.building:
            index["status"] = "BUILDING"
        else:
            index["serving"] = command["definition"]
        return {}

    def _drop(self, namespace: str, command: Document) -> Document:
        del self.indexes[namespace][self._named(namespace, command)["name"]]
        return {}

    def _named(self, namespace: str, command: Document) -> Document:
        name = command.get("name", "")
        if name not in self.indexes[namespace]:
            raise SearchError(27, f"Index '{name}' not found.")
        return self.indexes[namespace][name]


def refusing(code: int, message: str, name: str = "AtlasError") -> Refusal:
    """Refuses the whole command, as a server does that is full or steps down."""
    return lambda _: {"ok": 0.0, "errmsg": message, "code": code, "codeName": name}


def _listed(index: Document) -> Document:
    """An index as `$listSearchIndexes` tells of it; `serving` is a word of ours."""
    main = {"queryable": index["queryable"], "definition": index["serving"]}
    told = {key: value for key, value in index.items() if key != "serving"}
    return told | {"statusDetail": [{"mainIndex": main}]}


def _cursor(namespace: str, documents: list[Document]) -> Document:
    return {"cursor": {"id": 0, "ns": namespace, "firstBatch": documents}, "ok": 1.0}


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(1 << 16):
            target.sendall(part)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
