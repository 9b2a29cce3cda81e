"""python -m tests.faults: injects faults into the tiny pipeline, and says what came of them (campaign.py)."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults import campaign, stand


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=campaign.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, help="about so long, a seeded choice (default: everything)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], metavar="START", help="of a name; repeatable")
    parser.add_argument("--modules", nargs="*", default=list(campaign.MODULES), help="files with trials")
    parser.add_argument("--workers", type=int, default=1, help="trials at the same time")
    parser.add_argument("--list", action="store_true", help="name the trials, run none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--log", type=Path, metavar="FILE", help="gets each trial; those that passed there are not run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maskmill-faults-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        stand.at(folder)
        seconds = None if given.minutes is None else 60 * given.minutes * campaign.SHARE
        trials = campaign.chosen(campaign.planned(given.modules), seconds, given.seed, given.only)
        if given.list:
            print("\n".join(trial.name for trial in trials))
            return 0
        campaign.say(f"{len(trials):,} trials, about {sum(trial.cost for trial in trials) / 60:.0f} minutes of a core")
        report = campaign.run(trials, folder, given.workers, campaign.say, given.log)
    print(campaign.table(report.rows()))
    for line in report.failures:
        print(line)
    if given.json:
        campaign.write(report, given.json)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
