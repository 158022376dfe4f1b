"""What the site's pages state but nobody types: tables of results, the command line's reference, diagrams."""
