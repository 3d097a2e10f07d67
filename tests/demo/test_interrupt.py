import json
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from openfastervit.demo.interrupt import Interruption

CHILD = textwrap.dedent(
    """
    import dataclasses, signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent may have been started with it ignored
    from openfastervit.demo import job
    from openfastervit_cli import main

    load, real = job.load, job.{function}
    job.load = lambda: dataclasses.replace(load(), training=load().training[:256])  # four steps an epoch

    def watched(*args, tell, **options):
        def told(*step):
            tell(*step)
            print("working", flush=True)
            time.sleep(0.2)
        return real(*args, tell=told, **options)

    job.{function} = watched
    evaluate = job.evaluate

    def slowly(*args):
        print("evaluating", flush=True)
        time.sleep({pause})
        return evaluate(*args)

    job.evaluate = slowly
    sys.exit(main(["demo", "--out", sys.argv[1], "--epochs", "{epochs}"]))
    """
)


def start(out, function="train", epochs=50, pause=0):
    code = CHILD.format(function=function, epochs=epochs, pause=pause)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(child, "working")
    return child


def wait_for(child, line):
    for text in child.stdout:
        if text == f"{line}\n":
            return
    raise AssertionError(child.communicate()[1])


def test_ctrl_c_during_training_still_makes_a_report(tmp_path):
    out = tmp_path / "report"
    child = start(out)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert "Traceback" not in errors
    assert "Ctrl-C again leaves at once" in " ".join(errors.split())
    assert output.splitlines()[-1].startswith(f"Made {out / 'report.html'}")
    assert "interrupted" in output.splitlines()[-1]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "This run was interrupted (Ctrl-C). The network trained for 0 of 50 epochs and " in page
    assert "Not measured: the run was interrupted before." in page
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["interrupted"] is True
    assert 1 <= summary["steps"] < 4
    assert not list(out.glob(".*"))


def test_second_ctrl_c_leaves_at_once_and_leaves_nothing(tmp_path):
    out = tmp_path / "report"
    child = start(out, pause=600)
    child.send_signal(signal.SIGINT)
    wait_for(child, "evaluating")
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert not out.exists()


def test_ctrl_c_while_speed_is_measured_keeps_the_training(tmp_path):
    out = tmp_path / "report"
    child = start(out, function="compare", epochs=1)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["interrupted"], summary["steps"]) == (True, 4)
    assert "(interrupted; trained for 1 epoch)" in output.splitlines()[-1]


def test_handler_is_put_back_also_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="stop"), Interruption():
        raise RuntimeError("stop")
    assert signal.getsignal(signal.SIGINT) is before


def test_first_asks_second_leaves():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interruption() as interruption:
            assert not interruption.requested
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone():
    found: list[bool] = []

    def work() -> None:
        with Interruption() as interruption:
            found.append(interruption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
