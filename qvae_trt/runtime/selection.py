"""The engines of a folder: which one serves a size, why the others do not, and what happened when
one was tried.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qvae_trt import backends, store
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    ForeignEngineError,
    QvaeError,
    UsageError,
)
from qvae_trt.profiles import MODES, Choice, Mode, Part, Profile, Resolution, choose, engine_path
from qvae_trt.runtime.cache import EngineCache
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.failures import Failures, Signature, bare, signature
from qvae_trt.runtime.graphs import capturing
from qvae_trt.runtime.holdings import free_dropped, on
from qvae_trt.runtime.memory import memory_named
from qvae_trt.runtime.recent import Recent
from qvae_trt.runtime.scratch import Scratch, shared_scratch

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


def named_folder(path: str | os.PathLike[str]) -> Path:
    """A folder as a user wrote it, found from whatever folder the process goes to later.

    Raises:
        UsageError: no such user (`~name`), a relative path where there is no current folder, or no
            path at all.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"the engine folder is {str(path)!r}: no such user") from error
    except OSError as error:
        raise UsageError(
            f"the engine folder is {str(path)!r}, and the current folder is gone: {error.strerror}"
        ) from error
    except TypeError as error:
        raise UsageError(f"the engine folder is {path!r}, expected a path") from error


def lasting_source(model: str) -> str:
    """What names a model, if it is a path, found from whatever folder the process goes to later."""
    try:
        path = Path(model).expanduser()
        return str(path.absolute()) if model and path.exists() else model
    except (OSError, RuntimeError, ValueError):  # `load_model` says what is wrong with it
        return model


def roots(engine_dir: Path) -> dict[Mode, Path]:
    """Where the engines of both modes are in an engine folder.

    Raises:
        UsageError: it is the folder of one mode, which is one too deep.
    """
    folders: dict[Mode, Path] = {mode: engine_dir / mode for mode in MODES}
    with suppress(OSError):
        if not any(folder.is_dir() for folder in folders.values()) and any(
            engine for pattern in ("vae_*", "*/vae_*") for engine in engine_dir.glob(pattern)
        ):
            raise UsageError(
                f"{engine_dir} holds engines itself, expected the folder above, which holds"
                f" {' and '.join(MODES)}",
                fix=f"load_vae({str(engine_dir.parent)!r})",
            )
    return folders


class Engines:
    """The engines in a folder that belong to one VAE.

    Args:
        folders: of each mode there is (see `roots`).
        backend: a name, or a backend.
        weights_sha256: of the VAE; an engine of other weights is stale. None takes any.
        vae: the name of its kind, for what is said of engines of another one.
        budget_bytes: for the engines loaded on one device; None keeps all.
        allow_foreign: take engines without a sidecar.
        cuda_graphs: capture one CUDA graph for each static engine.
        names: of the folders of static engines that are not named by their size.

    Attributes:
        given: there is a folder.
        backend: what runs them; None where it is absent.
        refusal: why no engine can run here; None if they can.
        device_type: where they run here, `cuda` or `cpu`.
        cuda_graphs: as given.
    """

    def __init__(
        self,
        folders: Mapping[Mode, Path],
        *,
        backend: str | backends.Backend,
        weights_sha256: str | None,
        vae: str | None = None,
        budget_bytes: int | None = None,
        allow_foreign: bool = False,
        cuda_graphs: bool = False,
        names: Mapping[Resolution, str] | None = None,
    ) -> None:
        self._made_of = partial(
            Engines,
            dict(folders),
            backend=backend,
            weights_sha256=weights_sha256,
            vae=vae,
            budget_bytes=budget_bytes,
            allow_foreign=allow_foreign,
            cuda_graphs=cuda_graphs,
            names=names,
        )
        self._folders = dict(folders)
        self._names = dict(names or {})
        self.given = bool(folders)
        self._weights_sha256 = weights_sha256
        self._vae = vae
        self._budget_bytes = budget_bytes
        self._allow_foreign = allow_foreign
        self.cuda_graphs = cuda_graphs
        self._places: dict[torch.device, tuple[EngineCache, Scratch]] = {}
        self._failures = Failures()
        self._ranges: dict[Path, tuple[Signature, tuple[Profile, ...]]] = {}
        # With the signatures of both engines: choosing costs more than launching.
        self._choices: Recent[tuple[Part, Resolution], tuple[tuple[Signature, ...], Choice]]
        self._choices = Recent()
        self._lock = threading.Lock()
        self.backend: backends.Backend | None = None
        self.refusal: QvaeError | None = None
        self.device_type = "cuda"
        try:
            self.backend = backends.get(backend) if isinstance(backend, str) else backend
            if self.backend.identity().get("gpu") == "cpu":
                self.device_type = "cpu"
            self.backend.can_run().require()
        except BackendError as error:
            self.refusal = bare(error)

    def __reduce__(self) -> tuple[partial[Engines], tuple[()]]:
        """Pickled as what they were made of: another process opens them itself."""
        return self._made_of, ()

    def path(self, part: Part, mode: Mode, resolution: Resolution | None = None) -> Path | None:
        """Where an engine would be; None without a folder or a backend."""
        if self.backend is None or mode not in self._folders:
            return None
        name = engine_path(Path(), part, mode, self.backend.suffix, resolution).relative_to(mode)
        if mode == "static" and resolution in self._names:
            name = Path(self._names[resolution], name.name)
        return self._folders[mode] / name

    def other_backend(self, part: Part, resolution: Resolution) -> str | None:
        """Of which other backend there is an engine for a size; None without one."""
        paths = self.path(part, "static", resolution), self.path(part, "profiles")
        found = (_other_flavour(path, resolution) for path in paths if path is not None)
        return next(filter(None, found), None)

    def choice(
        self, part: Part, resolution: Resolution, *, unfit: Mapping[str, str] | None = None
    ) -> Choice:
        """What serves a size, and why nothing before it does.

        Args:
            part: which engine of the pair.
            resolution: of the picture.
            unfit: modes that were tried, with what went wrong.
        """
        if unfit:
            return self._choose(part, resolution, unfit)
        paths = self.path(part, "static", resolution), self.path(part, "profiles")
        # An engine that was built, replaced or removed since then is seen by its files.
        files = tuple(signature(path) for path in paths if path is not None)
        known = self._choices.get((part, resolution))
        if known is not None and known[0] == files:
            return known[1]
        choice = self._choose(part, resolution, {})
        if choice.engine != "pytorch":  # whose reasons speak of other files, too
            self._choices[part, resolution] = files, choice
        return choice

    def _choose(self, part: Part, resolution: Resolution, unfit: Mapping[str, str]) -> Choice:
        if self.refusal is not None:
            unfit = dict.fromkeys(("static", "profiles"), self.refusal.what)
        exact = unfit.get("static") or _present(self.path(part, "static", resolution), resolution)
        wide = self.path(part, "profiles")
        reason, ranges = unfit.get("profiles"), None
        if reason is None:
            found = _present(wide, resolution)
            if isinstance(found, Path):
                try:
                    ranges = self._profiles(found)
                except (EngineError, BackendError) as error:
                    reason = error.what
            else:
                reason = found
        return choose(
            resolution,
            static={resolution: exact},
            profiles=ranges,
            profiles_path=wide,
            profiles_reason=reason,
        )

    def checked_choice(
        self, part: Part, resolution: Resolution, device: torch.device | None = None
    ) -> Choice:
        """`choice`, less the engines that would be refused when they are loaded, or are left alone
        for now, on this device or the current one.

        Reads them whole.
        """
        device = torch.device(self.device_type) if device is None else device
        unfit: dict[str, str] = {}
        while (choice := self.choice(part, resolution, unfit=unfit)).path is not None:
            try:
                self._failures.check(choice.path, device, resolution)
                store.check_engine(
                    choice.path, expected=self._expected(choice.path, part, choice, device)
                )
            except (EngineError, BackendError) as error:
                if not (self._allow_foreign and isinstance(error, ForeignEngineError)):
                    unfit[choice.engine] = str(error)
                    continue
            break
        return choice

    def run(self, part: Part, choice: Choice, x: torch.Tensor) -> torch.Tensor:
        """Run the chosen engine, one picture at a time: (B, C, 1, H, W) → (B, C', 1, H', W'), in
        x's dtype.

        Raises:
            EngineError: it cannot be loaded, or fails; which of the two is remembered where trying
                again is idle.
        """
        path = choice.path
        if path is None:
            raise EngineError(f"no engine serves the {part} at {choice.resolution}")
        if capturing(x):
            return self._captured(path, part, choice, x)
        self._failures.check(path, x.device, choice.resolution)
        with suppress(DeviceMemoryError):
            return self._leased(path, part, choice, x)
        self.make_room(x.device)
        return self._leased(path, part, choice, x)

    def _leased(self, path: Path, part: Part, choice: Choice, x: torch.Tensor) -> torch.Tensor:
        cache, scratch = self._place(x.device)
        files = signature(path)
        load = partial(self._open, path, part, choice, scratch, x.device)
        try:
            with cache.lease(path, load) as engine:
                y = _each(engine, x, choice.resolution)
        except ExecutionError as error:
            self._failures.note(path, x.device, error, files, choice.resolution)
            cache.discard(path)
            raise
        self._failures.clear_strikes(path, x.device, choice.resolution)
        return y

    def _captured(self, path: Path, part: Part, choice: Choice, x: torch.Tensor) -> torch.Tensor:
        """`run` inside a caller's capture, where nothing may be loaded, closed or waited for: that
        would void the capture. What goes wrong is the capture's, and is not held against the
        engine.
        """
        with self._place(x.device)[0].loaded(path) as engine:
            if engine is None:
                raise ExecutionError(
                    f"{path}: cannot be loaded while a CUDA graph is captured",
                    fix=f"run the {part} once at {choice.resolution} before capturing it",
                )
            return _each(engine, x, choice.resolution)

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

    def memory(self) -> dict[str, int]:
        """Bytes held now: engines loaded (as their files), and scratch."""
        places = list(self._places.values())
        return {
            "engines": len([path for cache, _ in places for path in cache.paths]),
            "engine_bytes": sum(cache.bytes for cache, _ in places),
            "scratch_bytes": sum(scratch.bytes for _, scratch in places),
        }

    def _place(self, device: torch.device) -> tuple[EngineCache, Scratch]:
        place = self._places.get(device)
        if place is None:
            with self._lock:
                place = self._places.setdefault(
                    device, (EngineCache(budget_bytes=self._budget_bytes), shared_scratch(device))
                )
        return place

    def _open(
        self, path: Path, part: Part, choice: Choice, scratch: Scratch, device: torch.device
    ) -> Engine:
        self._failures.check(path, device)  # another thread may have tried meanwhile
        files = signature(path)
        try:
            return Engine.open(
                path,
                # On the CPU nothing is shared, and two engines may run at once.
                scratch=scratch if device.type == "cuda" else None,
                device=device,
                allow_foreign=self._allow_foreign,
                expected=self._expected(path, part, choice, device),
                backend=self.backend,
                cuda_graph=self.cuda_graphs,
            )
        except (EngineError, BackendError) as error:
            self._failures.note(path, device, error, files)
            raise

    def _expected(
        self, path: Path, part: Part, choice: Choice, device: torch.device
    ) -> dict[str, object]:
        with on(device):  # GPUs of one machine may differ
            identity = {} if self.backend is None else self.backend.identity()
        mode: Mode = "static" if choice.engine == "static" else "profiles"
        size = choice.resolution if mode == "static" else None
        engine = store.EngineFile(path, part, mode, size)
        return engine.expected(identity, weights_sha256=self._weights_sha256, vae=self._vae)

    def _profiles(self, path: Path) -> tuple[Profile, ...]:
        """The ranges of a profiles engine: its sidecar's, or a foreign engine's own."""
        files = signature(path)
        known = self._ranges.get(path)
        if known is not None and known[0] == files:
            return known[1]
        try:
            ranges = store.read_sidecar(path).key.profiles
        except ForeignEngineError:
            if not self._allow_foreign:
                raise
            ranges = self._ranges_of_foreign(path, files)
        self._ranges[path] = (files, ranges)
        return ranges

    def _ranges_of_foreign(self, path: Path, files: Signature) -> tuple[Profile, ...]:
        place = torch.device(self.device_type)
        self._failures.check(path, place)
        try:
            engine = Engine.open(path, allow_foreign=True, backend=self.backend)
        except (EngineError, BackendError) as error:
            self._failures.note(path, place, error, files)
            raise
        engine.close()
        return engine.profiles


def _each(engine: Engine, x: torch.Tensor, resolution: Resolution) -> torch.Tensor:
    profile = engine.profile_for(resolution)
    parts = [engine.run(x[i : i + 1], profile=profile) for i in range(x.shape[0])]
    with memory_named(x.device, f"memory free for the result of {engine.path.name}"):
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        if engine.sidecar is None and engine.part == "decoder":
            y = y.clamp(-1.0, 1.0)  # qvae's graphs end in a clamp; a foreign one may not
        return y.to(x.dtype)


def _present(path: Path | None, resolution: Resolution) -> Path | str:
    if path is None:
        return "no folder of such engines was given"
    try:
        if path.is_file():
            return path
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}"
    flavour = _other_flavour(path, resolution)
    return f"no file {path}" + (f"; there is an engine of {flavour}" if flavour else "")


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
    return key.flavour if holds and key.flavour in backends.NAMES else None
