"""Evaluation of a run: accuracy of the judge, Good–Same–Bad by ground truth, and the report that shows both."""
