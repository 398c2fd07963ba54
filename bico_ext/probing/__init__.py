"""The probe of a frozen model: what the sine flip changes in its attention and in its loss on hidden tokens."""
