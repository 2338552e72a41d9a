"""The live view: follow a run by its files, wherever it was started, with alarms and a button that stops it.

source = choose("auto")          # or an experiment file, which is started in a process of its own
view = watch(source)             # shown by the last line of a cell; headless it returns when the run has ended
view.finish(run)                 # ends the watching notebook's own run when the other has ended
"""

from rlhf_lab.workbench.live.alarms import Alarm, find_alarms
from rlhf_lab.workbench.live.follow import Follower, Seen
from rlhf_lab.workbench.live.start import choose
from rlhf_lab.workbench.live.watching import Watch, settings_table, watch

__all__ = ["Alarm", "Follower", "Seen", "Watch", "choose", "find_alarms", "settings_table", "watch"]
