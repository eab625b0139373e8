"""Before and around the download: LAION's tables of links, img2dataset's command, and what it made of the images."""
