"""Engine files on disk: what they are (sidecars), whether they still are (hashes), and how they are
written.

Files of an engine `vae_encoder.trt`, all in its folder:

    vae_encoder.trt                the engine
    vae_encoder.trt.json           its sidecar
    .vae_encoder.trt.next.json     the sidecar of the engine that is about to take the place
    .vae_encoder.trt.*.tmp         files being written, private (mode 0600)
    .vae_encoder.trt.lock          held while the engine is built or written

An engine and its sidecar cannot be replaced in one step. They are replaced so that a kill at any
moment, or a power cut, leaves a whole engine that has its sidecar:

    1. the new engine is written to a temporary file and synced
    2. its sidecar is written as `.next.json`, synced     killed before 3: the old pair is untouched
    3. the new engine is renamed over the old one         killed before 4: new engine, old sidecar,
                                                          `.next.json`
    4. `.next.json` is renamed over the old sidecar

Sidecars carry the engine's SHA-256, so a reader that finds state 3 sees that the old sidecar is not
this engine's, tries `.next.json`, and takes it if the hash is right. Whoever next takes the lock
finishes step 4 (or removes a `.next.json` that belongs to no engine) and removes temporary files.
No step looks at the clock.
"""

from __future__ import annotations

from qvae_trt.store.checking import (
    check_engine,
    differences,
    option_in,
    read_sidecar,
    signature,
    words_of,
)
from qvae_trt.store.finding import EngineFile, check_other_folder, engine_file, find_engines
from qvae_trt.store.locking import clean_up, lock_engine
from qvae_trt.store.sidecar import (
    FORMAT_VERSION,
    EngineKey,
    Mismatch,
    Sidecar,
    show,
    sidecar_path,
)
from qvae_trt.store.writing import write_engine

__all__ = [
    "FORMAT_VERSION",
    "EngineFile",
    "EngineKey",
    "Mismatch",
    "Sidecar",
    "check_engine",
    "check_other_folder",
    "clean_up",
    "differences",
    "engine_file",
    "find_engines",
    "lock_engine",
    "option_in",
    "read_sidecar",
    "show",
    "sidecar_path",
    "signature",
    "words_of",
    "write_engine",
]
