"""The engines of one VAE: which one serves a size, why the others do not, and what is loaded."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import partial
from pathlib import Path

import torch

from qvae_trt import backends, store
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    ForeignEngineError,
    QvaeError,
)
from qvae_trt.opening import Wanted, check
from qvae_trt.profiles import (
    BACKENDS,
    MODES,
    Choice,
    Mode,
    Part,
    Profile,
    Refusal,
    Resolution,
    choose,
    engine_path,
)
from qvae_trt.runtime.cache import EngineCache, Failures, Recent, Signature, bare
from qvae_trt.runtime.engine import Engine, free_dropped
from qvae_trt.runtime.graphs import capturing
from qvae_trt.runtime.memory import Scratch, on, shared_scratch


@dataclass(frozen=True, slots=True)
class Chosen:
    """What serves a size, chosen once and carried to the engine.

    Attributes:
        choice: it, with the reason for each candidate.
        file: where it is, if it is an engine.
        files: the `signature` of that file at that time; the profile is one of that engine.
    """

    choice: Choice
    file: store.EngineFile
    files: Signature


@dataclass(eq=False)
class Engines:
    """The engines in a folder that belong to one VAE.

    Args:
        folders: of each mode there is (see `arguments.mode_folders`).
        backend: a name, or a backend.
        weights_sha256: of the VAE; an engine of other weights is stale. None takes any.
        vae: the name of its kind, for messages about engines of another kind.
        budget_bytes: for the engines loaded on one device; None keeps all.
        allow_foreign: take engines without a sidecar.
        cuda_graphs: capture one CUDA graph for each engine.
        names: of the folders of static engines that are not named by their size.

    Attributes:
        adapter: what runs them; None where the backend is absent.
        refusal: why no engine can run here; None if they can.
        device_type: where they run here, `cuda` or `cpu`.
    """

    folders: Mapping[Mode, Path]
    _: KW_ONLY
    backend: str | backends.Backend
    weights_sha256: str | None
    vae: str | None = None
    budget_bytes: int | None = None
    allow_foreign: bool = False
    cuda_graphs: bool = False
    names: Mapping[Resolution, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._places: dict[torch.device, tuple[EngineCache, Scratch]] = {}
        self._failures = Failures()
        self._ranges: dict[Path, tuple[Signature, tuple[Profile, ...]]] = {}
        # With the signatures of both engines: choosing costs more than launching.
        self._choices: Recent[tuple[Part, Resolution], tuple[dict[Path, Signature], Chosen]]
        self._choices = Recent()
        self._lock = threading.Lock()
        self.adapter: backends.Backend | None = None
        self.refusal: QvaeError | None = None
        self.device_type = "cuda"
        given = self.backend
        try:
            self.adapter = backends.get(given) if isinstance(given, str) else given
            if self.adapter.identity().get("gpu") == "cpu":
                self.device_type = "cpu"
            self.adapter.can_run().require()
        except BackendError as error:
            self.refusal = bare(error)
        self._wanted = Wanted(
            backend=self.adapter,
            weights_sha256=self.weights_sha256,
            vae=self.vae,
            allow_foreign=self.allow_foreign,
        )

    def __reduce__(self) -> tuple[partial[Engines], tuple[()]]:
        """Pickled as what they were made of: another process opens them itself."""
        return partial(Engines, **{f.name: getattr(self, f.name) for f in fields(self)}), ()

    def path(self, part: Part, mode: Mode, resolution: Resolution | None = None) -> Path | None:
        """Where an engine would be; None without a folder or a backend."""
        if self.adapter is None or mode not in self.folders:
            return None
        name = engine_path(Path(), part, mode, self.adapter.suffix, resolution).relative_to(mode)
        if mode == "static" and resolution is not None and resolution in self.names:
            name = Path(self.names[resolution], name.name)
        return self.folders[mode] / name

    def other_backend(self, part: Part, resolution: Resolution) -> str | None:
        """Of which other backend there is an engine for a size; None without one."""
        paths = self.path(part, "static", resolution), self.path(part, "profiles")
        flavours = (_other_flavour(path, resolution) for path in paths if path is not None)
        return next(filter(None, flavours), None)

    def choose(
        self, part: Part, resolution: Resolution, unfit: Mapping[str, str] | None = None
    ) -> Chosen:
        """What serves a size, and why nothing before it does.

        Args:
            part: which engine of the pair.
            resolution: of the picture.
            unfit: modes that were tried, with what went wrong.
        """
        exact, wide = self.path(part, "static", resolution), self.path(part, "profiles")
        # An engine that was built, replaced or removed since then is seen by its files.
        files = {path: store.signature(path) for path in (exact, wide) if path is not None}
        before = None if unfit else self._choices.get((part, resolution))
        if before is not None and before[0] == files:
            return before[1]
        out = dict.fromkeys(MODES, self.refusal.what) if self.refusal is not None else unfit or {}
        refused = {mode: Refusal(reason) for mode, reason in out.items()}
        static = refused.get("static") or _present(exact, resolution)
        found = refused.get("profiles") or _present(wide, resolution)
        ranges: tuple[Profile, ...] | Refusal
        try:
            ranges = self._profiles(part, found, files[found]) if isinstance(found, Path) else found
        except (EngineError, BackendError) as error:
            ranges = Refusal(error.what)
        choice = choose(resolution, static=static, profiles=ranges, profiles_path=wide)
        mode: Mode = "static" if choice.engine == "static" else "profiles"
        size = resolution if mode == "static" else None
        path = choice.path or Path()
        chosen = Chosen(choice, store.EngineFile(path, part, mode, size), files.get(path, ()))
        if choice.path is not None and not unfit:  # else the reasons depend on other files, too
            self._choices[part, resolution] = files, chosen
        return chosen

    def checked_choice(
        self, part: Part, resolution: Resolution, device: torch.device | None = None
    ) -> Choice:
        """What `choose` finds without the engines that would be refused when they are loaded, or
        that are left alone for now, on this device or the current one. Reads whole engine files.
        """
        device = torch.device(self.device_type) if device is None else device
        unfit: dict[str, str] = {}
        while (chosen := self.choose(part, resolution, unfit)).choice.path is not None:
            try:
                self._failures.check((chosen.file.path, device, resolution))
                with on(device):  # GPUs of one machine may differ
                    check(chosen.file, self._wanted)
                break
            except (EngineError, BackendError) as error:
                unfit[chosen.file.mode] = str(error)
        return chosen.choice

    def serve(self, part: Part, chosen: Chosen, x: torch.Tensor) -> torch.Tensor | None:
        """Run the chosen engine: (1, C, 1, H, W) → (1, C', 1, H', W'), in the engine's dtype.

        Returns:
            None where its file was replaced since it was chosen: choose again.

        Raises:
            EngineError: it cannot be loaded, or fails. Either is remembered, so that what would
                fail again is not tried again; but not what goes wrong inside a caller's capture.
        """
        choice, path = chosen.choice, chosen.file.path
        place = path, x.device, choice.resolution
        cache, _ = self.place(x.device)
        inside = capturing(x)
        if not inside:
            self._failures.check(place)
        load = partial(self._open, chosen.file, x.device)
        last = inside
        while True:
            try:
                # Inside a capture nothing may be loaded, closed or waited for: that voids it.
                with cache.lease(path, None if inside else load) as engine:
                    if engine is None:
                        raise ExecutionError(
                            f"{path}: cannot be loaded while a CUDA graph is captured",
                            fix=f"run the {part} once at {choice.resolution} before capturing it",
                        )
                    if engine.files != chosen.files:
                        return None
                    y = engine.run(x, profile=choice.profile_index or 0)
                    if engine.sidecar is None and engine.part == "decoder":
                        y = y.clamp(-1.0, 1.0)  # as qvae's graphs end; a foreign one may not
            except DeviceMemoryError:
                if last:
                    raise
            except ExecutionError as error:
                if not inside:
                    self._failures.note(place, error, chosen.files)
                    cache.release_idle(path)
                raise
            else:
                self._failures.clear(place)
                return y
            self.make_room(x.device)
            last = True

    def make_room(self, device: torch.device) -> None:
        """Close the engines that nobody uses on a device, and give the scratch memory back."""
        free_dropped()
        place = self._places.get(device)
        if place is not None:
            place[0].release_idle()
            place[1].release()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def release(self) -> None:
        """`make_room` on every device, and forget what failed."""
        free_dropped()
        for device in list(self._places):
            self.make_room(device)
        self._failures.forget()
        self._ranges.clear()
        self._choices.clear()

    def release_scratch(self) -> None:
        """Give the scratch memory of every device back; the engines stay loaded."""
        for _, scratch in list(self._places.values()):
            scratch.release()

    def loaded(self) -> dict[torch.device, tuple[list[tuple[Path, int]], int]]:
        """Of each device: the engines loaded, with the bytes of their files, and scratch bytes."""
        places = list(self._places.items())
        return {device: (cache.loaded, scratch.bytes) for device, (cache, scratch) in places}

    def place(self, device: torch.device) -> tuple[EngineCache, Scratch]:
        """What is loaded on a device, and the scratch memory there."""
        with self._lock:
            if device not in self._places:
                cache = EngineCache(budget_bytes=self.budget_bytes)
                self._places[device] = cache, shared_scratch(device)
            return self._places[device]

    def _open(self, file: store.EngineFile, device: torch.device) -> Engine:
        loading = file.path, device, None
        self._failures.check(loading)  # another thread may have tried meanwhile
        files = store.signature(file.path)
        try:
            return Engine.open(file, self._wanted, device=device, cuda_graph=self.cuda_graphs)
        except (EngineError, BackendError) as error:
            self._failures.note(loading, error, files)
            raise

    def _profiles(self, part: Part, path: Path, files: Signature) -> tuple[Profile, ...]:
        """The ranges of a profiles engine: its sidecar's, or a foreign engine's own."""
        before = self._ranges.get(path)
        if before is not None and before[0] == files:
            return before[1]
        try:
            ranges = store.read_sidecar(path).key.profiles
        except ForeignEngineError:
            if not self.allow_foreign:
                raise
            file = store.EngineFile(path, part, "profiles")
            engine = self._open(file, torch.device(self.device_type))
            engine.close()
            ranges = engine.profiles
        self._ranges[path] = (files, ranges)
        return ranges


def _present(path: Path | None, resolution: Resolution) -> Path | Refusal:
    if path is None:
        return Refusal("no folder of such engines was given", absent=True)
    try:
        if path.is_file():
            return path
    except OSError as error:
        return Refusal(f"{path} cannot be looked at: {error.strerror}")
    flavour = _other_flavour(path, resolution)
    other = f"; there is an engine of {flavour}" if flavour else ""
    return Refusal(f"no file {path}{other}", absent=True)


def _other_flavour(path: Path, resolution: Resolution) -> str | None:
    """The backend of the engine beside one's place that has the other suffix, if it holds a
    size.
    """
    other = path.with_suffix(".trt" if path.suffix == ".onnx" else ".onnx")
    try:
        if not other.is_file():
            return None
        key = store.read_sidecar(other).key
    except (OSError, EngineError):
        return None
    holds = any(profile.holds(resolution) for profile in key.profiles)
    return key.flavour if holds and key.flavour in BACKENDS else None
