"""Pages to compare X-rays, teach a finding, explore embeddings and read results.

Written by hand; the modules next to it are written from notebooks. It loads none of them, so that
`import smlxray.app` is quick and works without the packages that only pages need.
"""
