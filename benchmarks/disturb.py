"""A client that gets in the way of others, in a process of its own. compare.py starts it; it goes on until it is killed.

    python disturb.py scan|deaf|drip text|resp PORT         python disturb.py overwrite text|resp PORT KEYS SIZE RATE

scan asks for all keys, again and again. deaf asks for them a few times and reads nothing. drip sends commands, a byte a
second. overwrite writes at a fixed rate. Prints a line when it begins; scan also one for every list it has got.

scan and overwrite only have the time of the processor that nobody else wants: what is measured is the server, not the race
of the clients for their processor.
"""

import os
import sys
import time

import talk

LISTS = 16                      # that a deaf client asks for


def scan(protocol, port):
    with talk.connect(port) as connection:
        give_way()
        begun()
        while True:
            talk.exchange(connection, protocol, talk.all_keys(protocol))
            print("listed", flush=True)


def deaf(protocol, port):
    with talk.connect(port, receive_buffer=4096) as connection:
        connection.sendall(talk.all_keys(protocol) * LISTS)
        begun()
        while True:
            time.sleep(60)


def drip(protocol, port):
    with talk.connect(port) as connection:
        begun()
        while True:
            for byte in talk.read(protocol, b"key:000000000000"):
                connection.sendall(bytes([byte]))
                time.sleep(1)


def overwrite(protocol, port, keys, size, rate):
    from kvnet.bench import run
    from kvnet.bench.mix import fixed
    from kvnet.bench.workload import Workload

    target = run.Target(talk.HOST, port, protocol)
    plan = run.Plan(clients=4, duration=3600, rate=rate, read_ratio=0)
    sockets = run.connect(target, plan.clients)
    give_way()
    begun()
    run.measure(target, sockets, plan, Workload(keys, fixed(16, size), "80-20"), lambda *progress: None)


def give_way():
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def begun():
    print("begun", flush=True)


def main(what, protocol, *numbers):
    {"scan": scan, "deaf": deaf, "drip": drip, "overwrite": overwrite}[what](protocol, *map(int, numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
