"""From a profile to a method, each step made once and found again; the record of trained models."""
