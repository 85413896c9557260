"""The report of a pilot: one self-contained HTML page, and the same as JSON.

Rooms:
    page      write_report(): fills template.html and writes both files.
    facts     what the report says, as plain numbers and sentences.
    figures   its figures as SVG.
"""

from multilevel_sde.pilots.report.page import write_report

__all__ = ["write_report"]
