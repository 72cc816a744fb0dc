/* The files of the status page, as NUL-terminated texts within the program. */
#ifndef IMAPMUX_HTTP_ASSETS_H
#define IMAPMUX_HTTP_ASSETS_H

extern const char asset_page[], asset_style[], asset_script[];

#endif
