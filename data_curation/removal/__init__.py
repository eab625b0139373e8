"""Take-downs: samples leave an export, and no later run of the same folder brings them back."""
