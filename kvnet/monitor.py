"""What a running server says of itself on its monitoring port, for `kvstore status --verbose`."""

import urllib.error
import urllib.request
from datetime import UTC, datetime
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT = 10  # seconds for the server to answer


class MonitorError(Exception):
    """The monitoring port cannot be reached, or is not that of a kvstore. The message is one line."""


def report(host, port):
    """Whether the server can do all of its work (bool), and lines of text (list of str) about its state.

    host: str; port: int. Raises MonitorError.
    """
    status, state = _get(host, port, "readyz")
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(_get(host, port, "metrics")[1])
        for sample in family.samples
        if not sample.labels
    }
    try:
        return status == 200, [f"state: {state.strip()}", *_lines(values)]
    except KeyError as error:
        raise MonitorError(f"{host}:{port} is no monitoring port of a kvstore: there is no metric {error}") from error


def _get(host, port, page):
    """Status (int) and text (str) of a page."""
    host = f"[{host}]" if ":" in host else host
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/{page}", timeout=TIMEOUT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise MonitorError(f"cannot ask the monitoring port {host}:{port}: {reason}; is --metrics-port right?") from error


def _lines(values):
    for name, metric in (("keys", "keys"), ("live bytes", "live_bytes"), ("dead bytes", "dead_bytes"),
                         ("bytes on disk", "disk_bytes"), ("bytes not synced yet", "unsynced_bytes")):
        yield f"{name}: {values['kvstore_' + metric]:.0f}"
    for name in ("fsync", "backup", "scrub"):
        yield f"last {name}: {_when(values[f'kvstore_last_{name}_timestamp_seconds'])}"
    yield (
        f"damage: {values['kvstore_recovery_damaged_ranges']:.0f} ranges at the opening, "
        f"{values['kvstore_scrub_damaged_ranges']:.0f} found by the scrub, "
        f"{values['kvstore_damaged_reads_total']:.0f} reads that met some"
    )


def _when(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if seconds else "none"
