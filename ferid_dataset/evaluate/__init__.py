"""From a model's answers to the figures of the paper: WAR, UAR, intervals, the confusion matrix and its picture."""
