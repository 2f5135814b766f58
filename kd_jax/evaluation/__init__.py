"""Networks scored on labelled cases."""
