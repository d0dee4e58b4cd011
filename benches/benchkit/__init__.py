"""What every benchmark needs: a server, measurements, a report."""
