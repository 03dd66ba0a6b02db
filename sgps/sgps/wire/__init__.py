"""Messages between sites and the coordinator's release service. Messages only: who calls and who serves is not known here."""
