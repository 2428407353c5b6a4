"""What a benchmark ran on, in words that may be published: no names, no paths."""

import os
import platform


def first_line(path, field):
    """What follows the colon in the first line of a /proc file that begins with field, or None."""
    try:
        with open(path) as lines:
            for line in lines:
                if line.startswith(field):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return None


def file_system(directory):
    """The type of the file system that holds directory."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 1]
    return "unknown"


def describe(directory):
    """{"machine": one line}."""
    memory = int((first_line("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / (1 << 20)
    model = first_line("/proc/cpuinfo", "model name") or platform.machine()
    return {"machine": f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB; {platform.system()} "
                       f"{'.'.join(platform.release().split('.')[:2])}, {file_system(directory)}; "
                       f"Python {platform.python_version()}"}
