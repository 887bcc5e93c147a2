"""The report of a participant: one HTML page, made from records."""

from slimbrain_app.report.contents import ReportContext, ReportedRun
from slimbrain_app.report.page import write_report

__all__ = ["ReportContext", "ReportedRun", "write_report"]
