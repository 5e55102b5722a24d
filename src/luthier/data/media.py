"""Pictures and sounds, read and given to the model's own processor."""

from __future__ import annotations

import hashlib
import io
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.example import Example
from luthier.core.files import sha256
from luthier.core.guard import guarded, reason
from luthier.data.bad import BadRow, named
from luthier.data.pictures import pillow

if TYPE_CHECKING:
    import numpy as np


def encode_image(example: Example, processor: Any) -> dict[str, Any]:
    """Returns `pixel_values` (channels, height, width) of a picture, by an image processor."""
    with named(example.row):
        return image_features(example, processor)


def encode_audio(example: Example, extractor: Any) -> dict[str, Any]:
    """Returns `input_features` or `input_values` of a sound, by a feature extractor.

    WAV (PCM of 8 to 32 bits) is read by the standard library, anything else by soundfile where that is installed.
    Channels are averaged, and the sound is brought to the extractor's sampling rate by its Fourier series. A sound
    longer than the extractor's window (30 s for Whisper, 10 s for AST) is cut there by the extractor, as is right
    for a label of the whole; what is said is learned of whole sounds alone (`luthier.data.speech`).
    """
    with named(example.row):
        return audio_features(example, extractor)


def image_features(example: Example, processor: Any) -> dict[str, Any]:
    """As `encode_image`, raising `BadRow`."""
    import numpy as np

    library = pillow()
    try:
        given = example.image
        picture = given if isinstance(given, library.Image) else library.open(_stream(given))
        out = processor(images=picture.convert("RGB"), return_tensors="np")
    except BadRow:
        raise
    except Exception as error:
        raise BadRow(f"unreadable image: {reason(error, bare=True)}") from None
    return {"pixel_values": np.asarray(out["pixel_values"][0])}


def media_digest(rows: Iterable[Example]) -> str | None:
    """SHA-256 over the files that the rows name as pictures and sounds, in order; None where they name none.

    What lies in the rows themselves is in their fingerprint.
    """
    return files_digest(value for row in rows for value in (row.image, row.audio, *row.images))


def files_digest(named: Iterable[Any]) -> str | None:
    """SHA-256 over the files among what names pictures and sounds, in order; None where there are none."""
    files = [path for value in named if (path := _file(value)) is not None]
    digest = hashlib.sha256()
    for path in files:
        with guarded(f"{path} cannot be read"):
            digest.update(sha256(path).encode())
    return digest.hexdigest() if files else None


def _file(value: Any) -> Path | None:
    named = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
    if isinstance(named, str) and named.startswith("data:"):  # a name too long for any file system
        return None
    return Path(named) if isinstance(named, str | Path) and Path(named).is_file() else None


def _stream(value: Any) -> Any:
    """What a reader opens: a path, or the bytes that parquet files and hub sets hold."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return io.BytesIO(value["bytes"])
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str | Path):
        raise BadRow(f"expected a path or bytes, found a {type(value).__name__}")
    return str(value)


def audio_features(example: Example, extractor: Any, whole: bool = False) -> dict[str, Any]:
    """As `encode_audio`, raising `BadRow`; with `whole`, also for a sound that the extractor would cut."""
    import numpy as np

    with guarded("unreadable audio", BadRow):
        samples, rate = _sound(example.audio)
    if not samples.size:
        raise BadRow("an audio file without samples")
    if not np.isfinite(samples).all():
        raise BadRow("its audio holds samples that are no finite numbers")
    most = getattr(extractor, "n_samples", None)  # of extractors with a window
    if whole and most is not None and len(samples) * extractor.sampling_rate > most * rate:
        long, window = len(samples) / rate, most / extractor.sampling_rate
        raise BadRow(f"a sound of {long:.1f} s, the model hears {window:g} s: divide it, with its text")
    samples = resample(samples, rate, extractor.sampling_rate)
    out = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np")
    name = extractor.model_input_names[0]
    return {name: np.asarray(out[name][0])}


def _sound(value: Any) -> tuple[np.ndarray, int]:
    """(samples in [-1, 1], rate in Hz)."""
    import numpy as np

    if isinstance(value, dict) and value.get("array") is not None:
        samples, rate = np.asarray(value["array"], dtype=np.float32), value.get("sampling_rate")
        if not isinstance(rate, int | float) or not rate >= 1:
            raise BadRow(f"'sampling_rate' beside the array is {rate}, expected samples per second, such as 16000")
        return samples if samples.ndim == 1 else samples.mean(axis=0), int(rate)
    stream = _stream(value)
    try:
        with wave.open(stream, "rb") as file:
            return _pcm(file), file.getframerate()
    except (wave.Error, EOFError) as error:
        return _soundfile(_stream(value), error)


def _pcm(file: wave.Wave_read) -> np.ndarray:
    import numpy as np

    width = file.getsampwidth()
    raw = np.frombuffer(file.readframes(file.getnframes()), dtype=np.uint8).reshape(-1, width)
    wide = np.zeros((len(raw), 4), dtype=np.uint8)
    wide[:, 4 - width :] = raw if width > 1 else raw ^ 0x80  # 8-bit WAV alone is unsigned
    samples = wide.reshape(-1).view("<i4").astype(np.float64) / 2**31
    return samples.reshape(-1, file.getnchannels()).mean(axis=1).astype(np.float32)


def _soundfile(stream: Any, error: Exception) -> tuple[np.ndarray, int]:
    try:
        import soundfile  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BadRow(f"not a PCM WAV file ({error}); other formats need soundfile: pip install soundfile") from None
    try:
        samples, rate = soundfile.read(stream, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as reason:
        raise BadRow(f"unreadable audio: {reason}") from None
    return samples.mean(axis=1), rate


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Resamples (n,) samples at `rate` Hz to (n wanted / rate,) at `wanted` Hz: the Fourier series, cut or
    continued by zeros."""
    import numpy as np

    if rate == wanted:
        return samples
    n = max(1, round(len(samples) * wanted / rate))
    spectrum = np.fft.rfft(samples)[: n // 2 + 1]
    return (np.fft.irfft(spectrum, n) * (n / len(samples))).astype(np.float32)
