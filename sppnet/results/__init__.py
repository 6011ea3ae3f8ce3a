"""Result tables and plots, made from saved results and scores; no network is run."""
