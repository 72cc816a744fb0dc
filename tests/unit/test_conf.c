/*
 * The reading of proxy.conf: what a good file becomes, and what is said of bad ones, to the line.
 */
#include "tests/unit/conf_folder.h"

#include "proxy/base/conf.h"

static struct conf *open_text(const char *text, struct err *err)
{
    put("proxy.conf", text);
    return conf_open(path_of("proxy.conf"), err);
}

/* "FILE:3: ..." or "FILE: ..." is expected with FILE standing for the main file. */
static void expect_error(const char *text, const char *expected)
{
    struct err err;
    char whole[512];
    struct conf *conf = open_text(text, &err);

    assert_null(conf);
    assert_int_equal(err.kind, ERR_CONFIG);
    snprintf(whole, sizeof whole, "%s%s", path_of("proxy.conf"), expected);
    assert_string_equal(err.text, whole);
}

/* Complete but for what a test puts behind it. */
#define LISTENER "listener l { address = 127.0.0.1:1143 tls = none }\n"
#define PASSWD   "passwd { file = users }\n"
#define ROUTE    "route { file = routes }\n"
#define SHARD    "shard blue { address = store:143 }\n"
#define GOOD     LISTENER PASSWD ROUTE SHARD
/* Is not closed yet. */
#define LDAP       GOOD "auth { sources = ldap }\nldap { uri = {\"ldap://h\"} base = \"dc=a\" "

#define SIXTY_FOUR "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define FLOOR      "/run/imapmux/of/the/second/machine/on/the/fourth/floor"

static void defaults_apply(void **state)
{
    struct err err;
    struct conf *conf = open_text(GOOD, &err);

    (void)state;
    assert_string_equal(err.text, "");
    assert_non_null(conf);
    assert_int_equal(conf->process.workers, 0);
    assert_int_equal(conf->process.stop_timeout, 30000);
    assert_int_equal(conf->login.max_line, 8192);
    assert_int_equal(conf->login.timeout, 60000);
    assert_int_equal(conf->log.level, LOG_LEVEL_INFO);
    assert_int_equal(conf->log.line, 0);
    assert_string_equal(conf->log.title, "");
    assert_int_equal(conf->auth.sources.count, 1);
    assert_string_equal(conf->auth.sources.items[0], "passwd");
    assert_int_equal(conf->capability.add.count, 0);
    assert_int_equal(conf->shards[0].tls, TLS_STARTTLS);
    assert_true(conf->shards[0].tls_verify);
    assert_int_equal(conf->shards[0].source_address.count, 0);
    assert_int_equal(conf->redis.password.len, 0);
    assert_string_equal(conf->ldap.filter, "(uid=%{user})");
    assert_string_equal(conf->ldap.ca_file, "");
    conf_close(&conf);
    assert_null(conf);
}

static void durations_by_themselves(void **state)
{
    uint64_t ms;

    (void)state;
    assert_true(conf_read_duration("90s", 90000, &ms));
    assert_int_equal(ms, 90000);
    assert_true(conf_read_duration("0", 0, &ms));
    assert_int_equal(ms, 0);
    assert_false(conf_read_duration("91s", 90000, &ms));
    assert_false(conf_read_duration("90", 90000, &ms));
    assert_false(conf_read_duration("", 90000, &ms));
}

static void values_of_every_kind(void **state)
{
    struct err err;
    struct conf *conf;

    (void)state;
    setenv("TEST_CONF_GREETING", "hello there", 1);
    conf =
        open_text("# comment\n// another\n/* and\n one \"more */\n" GOOD
                  "process { workers = 4 stop_timeout = \"250ms\" }\n"
                  "session { idle_timeout = 2h linger_timeout = 5M }\n"
                  "log { format = json level = 'debug' } # behind\n"
                  "login { greeting = \"${TEST_CONF_GREETING} # no comment\" max_line = 1k "
                  "max_literal = 100B }\n"
                  "ldap { uri = {\n ldap://one, # the first\n \"ldap://two\" // the second\n }\n "
                  "verify = Off }\n"
                  "capability { add = { \"X-A\", X-B } remove = {} }\n"
                  "shard green { address = {a:1, [::1]:2} login = master_suffix master_user = m\n"
                  " master_password = \"p'#\\\"w\" tls = implicit tls_verify = no\n"
                  " source_address = {192.0.2.7, \"2001:db8::7\", 192.0.2.8}}\n",
                  &err);
    assert_string_equal(err.text, "");
    assert_non_null(conf);
    assert_int_equal(conf->process.workers, 4);
    assert_int_equal(conf->process.stop_timeout, 250);
    assert_int_equal(conf->session.idle_timeout, 7200000);
    assert_int_equal(conf->session.linger_timeout, 300000);
    assert_int_equal(conf->log.format, LOG_FORMAT_JSON);
    assert_int_equal(conf->log.level, LOG_LEVEL_DEBUG);
    assert_int_equal(conf->log.line, 11);
    assert_string_equal(conf->login.greeting, "hello there # no comment");
    assert_int_equal(conf->login.max_line, 1024);
    assert_int_equal(conf->login.max_literal, 100);
    assert_int_equal(conf->ldap.uri.count, 2);
    assert_string_equal(conf->ldap.uri.items[0], "ldap://one");
    assert_string_equal(conf->ldap.uri.items[1], "ldap://two");
    assert_false(conf->ldap.verify);
    assert_int_equal(conf->capability.add.count, 2);
    assert_string_equal(conf->capability.add.items[1], "X-B");
    assert_int_equal(conf->shard_count, 2);
    const struct conf_shard *green = conf_find_shard(conf, "green");
    assert_ptr_equal(green, &conf->shards[1]);
    assert_int_equal(green->line, 19);
    assert_string_equal(green->address.items[1], "[::1]:2");
    assert_string_equal(green->master_password.bytes, "p'#\"w");
    assert_int_equal(green->source_address.count, 3);
    assert_string_equal(green->source_address.items[0], "192.0.2.7");
    assert_string_equal(green->source_address.items[1], "2001:db8::7");
    assert_null(conf_find_shard(conf, "red"));
    conf_close(&conf);
}

static void paths_start_from_the_folder_of_the_file(void **state)
{
    struct err err;
    char expected[128];
    struct conf *conf;

    (void)state;
    put("secret", "pass word\n\n");
    conf = open_text(GOOD "redis { password_file = secret }\n", &err);
    assert_non_null(conf);
    snprintf(expected, sizeof expected, "%s/users", folder);
    assert_string_equal(conf->passwd.file, expected);
    assert_int_equal(conf->redis.password.len, 10);
    assert_memory_equal(conf->redis.password.bytes, "pass word\n", 10);
    conf_close(&conf);
}

static void includes(void **state)
{
    struct err err;
    char expected[256];
    struct conf *conf;

    (void)state;
    put("more.conf", "# c\n" SHARD);
    conf = open_text(LISTENER "include(\"more.conf\")\n" PASSWD ROUTE, &err);
    assert_string_equal(err.text, "");
    assert_non_null(conf);
    assert_int_equal(conf->shards[0].line, 2);
    assert_int_equal(conf->passwd.line, 3);
    conf_close(&conf);

    put("more.conf", "# c\n\nshard red {\n tls = maybe\n}\n");
    assert_null(open_text(GOOD "include(\"more.conf\")\n", &err));
    snprintf(expected, sizeof expected,
             "%s:4: setting \"tls\" of shard \"red\": found \"maybe\", expected one of none, "
             "starttls, implicit",
             path_of("more.conf"));
    assert_string_equal(err.text, expected);

    put("more.conf", "\n\nshard red { }\n");
    assert_null(open_text(GOOD "include(\"more.conf\")\n", &err));
    snprintf(expected, sizeof expected, "%s:3: shard \"red\": \"address\" is not set",
             path_of("more.conf"));
    assert_string_equal(err.text, expected);

    put("more.conf", "include(\"more.conf\")\n");
    assert_null(open_text("include(\"more.conf\")\n", &err));
    snprintf(expected, sizeof expected, "%s:1: includes are nested more than 8 deep",
             path_of("more.conf"));
    assert_string_equal(err.text, expected);
}

static const struct {
    const char *text, *error;
} bad_files[] = {
    {"", ": there is no listener section"},
    {"\n\nfoo = 1\n",
     ":3: there is no section \"foo\"; imapmux --print-defaults shows all there are"},
    {"lisetner x {\n", ":1: the brace that opens here is not closed"},
    {"lisetner x {\n}\n", ":1: there is no section \"lisetner\": is \"listener\" meant?"},
    {"inculde(\"x\")\n", ":1: there is no section \"inculde\": is \"include\" meant?"},
    {"\nworkers = 2\n", ":2: there is no section \"workers\": that is a setting of process"},
    {"log {\n # c\n foo = 1\n}\n", ":3: section log has no setting \"foo\"; imapmux "
                                   "--print-defaults shows all there are"},
    {"log {\n levle = debug\n}\n", ":2: section log has no setting \"levle\": is \"level\" meant?"},
    {"listener l { plaintxt_login = yes }\n",
     ":1: section listener has no setting \"plaintxt_login\": is \"plaintext_login\" meant?"},
    {"listener l {\n max_connections = 2\n}\n",
     ":2: section listener has no setting \"max_connections\": that is a setting of http, "
     "shard"},
    {"log { master_password_file = x }\n",
     ":1: section log has no setting \"master_password_file\": that is a setting of shard"},
    {"log {\n level = loud\n}\n", ":2: setting \"level\" of log: found \"loud\", expected one "
                                  "of error, warning, info, debug"},
    {"/* a\n b */\n# c\n\nlistener imaps {\n // d\n tls = foo\n}\n",
     ":7: setting \"tls\" of listener \"imaps\": found \"foo\", expected one of none, "
     "starttls, implicit"},
    {"log { level = info\n level = debug }\n", ":2: setting \"level\" of log appears twice"},
    {"log { }\n\nlog { }\n" GOOD, ":3: section \"log\" appears twice"},
    {"auth {\n sources = {\n passwd,\n}\n sources = {ldap}\n}",
     ":5: setting \"sources\" of auth appears twice"},
    {"auth {\n sources = {passwd}\n sources = {ldap}\n}",
     ":3: setting \"sources\" of auth appears twice"},
    {GOOD "shard blue {\n address = a:1\n}\n", ":5: found duplicate title 'blue'"},
    {"process { workers = 257 }",
     ":1: setting \"workers\" of process: found \"257\", expected a number from 0 to 256"},
    {"process { workers = -1 }",
     ":1: setting \"workers\" of process: found \"-1\", expected a number from 0 to 256"},
    {"process { workers = 4x }",
     ":1: setting \"workers\" of process: found \"4x\", expected a number from 0 to 256"},
    {"process { workers = \"\" }",
     ":1: setting \"workers\" of process: found \"\", expected a number from 0 to 256"},
    {"process { workers = 99999999999999999999 }",
     ":1: setting \"workers\" of process: found \"99999999999999999999\", expected a number "
     "from 0 to 256"},
    {"process {\n stop_timeout = 30\n}", ":2: setting \"stop_timeout\" of process: found "
                                         "\"30\", expected a duration from 100ms to 1h"},
    {"process { stop_timeout = 2h }", ":1: setting \"stop_timeout\" of process: found \"2h\", "
                                      "expected a duration from 100ms to 1h"},
    {"process { stop_timeout = 9223372036854775800d }",
     ":1: setting \"stop_timeout\" of process: found \"9223372036854775800d\", expected a "
     "duration from 100ms to "
     "1h"},
    {"login { max_line = 1X }",
     ":1: setting \"max_line\" of login: found \"1X\", expected a size from 512B to 64K"},
    {"login { max_line = 1M }",
     ":1: setting \"max_line\" of login: found \"1M\", expected a size from 512B to 64K"},
    {"username { utf8 = maybe }",
     ":1: setting \"utf8\" of username: found \"maybe\", expected yes or no"},
    {"login { greeting = \"a\\nb\" }", ":1: setting \"greeting\" of login: found \"a\nb\", "
                                       "expected text without control characters"},
    {"log { level debug }", ":1: missing equal sign after option 'level'"},
    {"log {\n level = debug\n", ":1: the brace that opens here is not closed"},
    {"log\n", ":2: premature end of file"},
    {"log {\n level =\n", ":1: the brace that opens here is not closed"},
    {"}\n", ":1: unexpected closing brace"},
    {"\nlog {\n level = \"debug\n}\n", ":3: the string that starts here does not end"},
    {"\nlog { level = 'debug }\n", ":2: the string that starts here does not end"},
    {"\n/* log { }\n", ":2: the comment that starts here does not end"},
    {"login { greeting = \"\\9\" }", ":1: write \\xNN instead of an octal escape"},
    {"listener { }\n", ":1: missing title for section 'listener'"},
    {"include(a, b)\n", ":1: include takes the name of one file"},
    {"\ninclude(\"nothing\")\n", ":2: cannot include \"nothing\": No such file or directory"},
    {"admin { mode = 666 }", ":1: setting \"mode\" of admin: found \"666\", expected four octal "
                             "digits, as 0660"},
    {"admin { mode = 0668 }",
     ":1: setting \"mode\" of admin: found \"0668\", expected four octal digits, as 0660"},
    {"\nadmin { readers = root }", ":2: \"readers\" of admin is set, but its \"mode\" keeps "
                                   "them out: imapmux looks itself who "
                                   "somebody is, so let it be 0666"},
    {"admin { group = nosuch }", ":1: setting \"group\" of admin: there is no group \"nosuch\""},
    {"admin { mode = 0666 readers = nosuch }",
     ":1: setting \"readers\" of admin: there is no group \"nosuch\""},
    {"admin { socket = " FLOOR FLOOR " }",
     ":1: setting \"socket\" of admin: " FLOOR FLOOR ": longer than 99 octets"},
    {"\nlistener l { tls = none }\n", ":2: listener \"l\": \"address\" is not set"},
    {"listener l {\n address = localhost:993\n}\n",
     ":1: setting \"address\" of listener \"l\": found \"localhost:993\", expected a numeric "
     "address with port, "
     "as in 192.0.2.1:993 or [::]:993"},
    {"listener l { address = 127.0.0.1:993 }\n",
     ":1: listener \"l\" speaks TLS, but there is no certificate section"},
    {"listener l { address = 127.0.0.1:143 tls = none mechanisms = {plain, SCRAM} }\n",
     ":1: setting \"mechanisms\" of listener \"l\": found \"SCRAM\", expected PLAIN, LOGIN, "
     "EXTERNAL, OAUTHBEARER or XOAUTH2"},
    {"listener l { address = 127.0.0.1:143 tls = none mechanisms = {PLAIN, external} }\n",
     ":1: listener \"l\" offers EXTERNAL, but \"client_ca_file\" of tls is not set"},
    {"listener l { address = 127.0.0.1:143 tls = none mechanisms = {PLAIN, xoauth2} }\n",
     ":1: listener \"l\" offers xoauth2, but \"keys\" of oauth is not set"},
    {"listener l { address = 127.0.0.1:993 proxy_protocol = {10.0.0.0/8, x/9} }\n",
     ":1: setting \"proxy_protocol\" of listener \"l\": found \"x/9\", expected a network, as "
     "in 192.0.2.0/24"},
    {GOOD "certificate c { }\n", ":5: certificate \"c\": \"chain\" is not set"},
    {GOOD "certificate c { chain = /nowhere }\n",
     ":5: setting \"chain\" of certificate: /nowhere: No such file or directory"},
    {GOOD "certificate c { chain = /dev/null key = /tmp }\n",
     ":5: setting \"key\" of certificate: /tmp: Is a directory"},
    {GOOD "tls { client_ca_file = /nowhere }\n",
     ":5: setting \"client_ca_file\" of tls: /nowhere: No such file or directory"},
    {GOOD "tls { client_ca_file = /dev/null client_crl_file = /nowhere }\n",
     ":5: setting \"client_crl_file\" of tls: /nowhere: No such file or directory"},
    {GOOD "tls { client_crl_file = /dev/null }\n",
     ":5: \"client_crl_file\" of tls is set, but \"client_ca_file\" is not"},
    {GOOD "tls { client_user = dn }\n",
     ":5: setting \"client_user\" of tls: found \"dn\", expected one of cn, uid, email, upn"},
    {GOOD "username { domain_map = { \"a=b\", \"c\" } }\n",
     ":5: setting \"domain_map\" of username: found \"c\", expected \"from=to\""},
    {GOOD "auth { sources = {} }\n",
     ":5: setting \"sources\" of auth: found none, expected passwd, ldap"},
    {GOOD "listener m { address = {\"127.0.0.1:1144\", \"127.0.0.1:1143\"} tls = none }\n",
     ":5: setting \"address\" of listener \"m\": listener \"l\" has 127.0.0.1:1143 already"},
    {"listener l { address = {\"[::]:1143\", \"[::0]:1143\"} tls = none }\n",
     ":1: setting \"address\" of listener \"l\": listener \"l\" has [::0]:1143 already"},
    {GOOD "http { address = \"127.0.0.1:1143\" }\n",
     ":5: setting \"address\" of http: listener \"l\" has 127.0.0.1:1143"},
    {LISTENER "auth { }\n" ROUTE SHARD,
     ":2: auth asks the source \"passwd\", but \"file\" of passwd is not set"},
    {LISTENER "auth { }\npasswd { }\n" ROUTE SHARD,
     ":3: auth asks the source \"passwd\", but \"file\" of passwd is not set"},
    {GOOD "auth { sources = {passwd, pam} }\n",
     ":5: setting \"sources\" of auth: found \"pam\", expected passwd, ldap"},
    {LISTENER ROUTE SHARD, ": auth asks the source \"passwd\", but \"file\" of passwd is not set"},
    {GOOD "auth { sources = ldap }\n",
     ":5: auth asks the source \"ldap\", but \"uri\" of ldap is not set"},
    {GOOD "auth { sources = ldap }\nldap { uri = {ldap://h} }\n",
     ":6: neither \"base\" nor \"dn_template\" of ldap is set"},
    {GOOD "auth { sources = ldap }\nldap { uri = {http://h} }\n",
     ":6: setting \"uri\" of ldap: found \"http://h\", expected ldap://, ldaps:// or ldapi://"},
    {LDAP "networks_attribute = net }\nauth_cache { negative_ttl = 1s }\n",
     ":6: \"networks_attribute\" of ldap goes with no \"negative_ttl\" of auth_cache: wrong "
     "passwords "
     "that are refused from memory would tell a right one at a wrong place"},
    {LDAP "bind_dn = \"cn=a\" }\n", ":6: \"bind_dn\" of ldap is set, but \"bind_password\" is not"},
    {LDAP "bind_password = a }\n", ":6: \"bind_password\" of ldap is set, but \"bind_dn\" is not"},
    {LDAP "sasl_external = yes }\n",
     ":6: \"sasl_external\" of ldap is on, but \"ldap://h\" is not ldapi://, and there is no "
     "\"client_certificate\""},
    {LDAP "client_certificate = /etc/passwd }\n",
     ":6: \"client_certificate\" of ldap is set, but \"ldap://h\" does not speak TLS, as "
     "start_tls is off"},
    {LDAP "start_tls = yes client_certificate = /nothing }\n",
     ":6: setting \"client_certificate\" of ldap: /nothing: No such file or directory"},
    {LDAP "client_key = /etc/passwd }\n",
     ":6: \"client_key\" of ldap is set, but \"client_certificate\" is not"},
    {LDAP "start_tls = yes client_certificate = /etc/passwd sasl_external = yes\n"
          "bind_dn = \"cn=a\" bind_password = b }\n",
     ":6: \"sasl_external\" of ldap is on: \"bind_dn\" and \"bind_password\" have no use"},
    {LDAP "dn_template = \"uid=%{user}\" referrals = yes }\n",
     ":6: \"referrals\" of ldap has no use with \"dn_template\": no search is made"},
    {LDAP "dn_template = \"uid=%{user}\" decoy_dn = \"cn=a\" }\n",
     ":6: \"decoy_dn\" of ldap has no use with \"dn_template\": no search is made"},
    {LDAP "allow_if = {\"a=b\", \"=c\"} }\n",
     ":6: setting \"allow_if\" of ldap: found \"=c\", expected \"attribute=value\""},
    {LDAP "refuse_if = {ab} }\n",
     ":6: setting \"refuse_if\" of ldap: found \"ab\", expected \"attribute=value\""},
    {GOOD "ldap { bind_password = a bind_password_file = b }\n",
     ":5: ldap: both \"bind_password\" and \"bind_password_file\" are set"},
    {GOOD "ldap { bind_password_file = nothing }\n",
     ":5: setting \"bind_password_file\" of ldap: nothing: No such file or directory"},
    {GOOD "ldap { bind_password_file = /dev/null }\n",
     ":5: setting \"bind_password_file\" of ldap: /dev/null is empty"},
    {LISTENER PASSWD SHARD, ": route asks the source \"file\", but \"file\" of route is not set"},
    {LISTENER PASSWD SHARD "route { sources = {redis} keep_while_down = 10s }\n",
     ":4: setting \"keep_while_down\" of route: expected no less than \"node_expiry\" of "
     "redis"},
    {LISTENER PASSWD SHARD "route { sources = {redis} keep_referrals = yes }\n",
     ":4: \"keep_referrals\" of route needs \"follow_referrals\", and the source redis"},
    {LISTENER PASSWD SHARD "route { sources = {ldap} follow_referrals = 1 keep_referrals = yes }\n",
     ":4: \"keep_referrals\" of route needs \"follow_referrals\", and the source redis"},
    {LISTENER PASSWD SHARD "route { sources = {redis} follow_referrals = 4 }\n",
     ":4: setting \"follow_referrals\" of route: found \"4\", expected a number from 0 to 3"},
    {LISTENER PASSWD SHARD "route { sources = {} }",
     ":4: setting \"sources\" of route: found none, expected redis, ldap, file, "
     "ring, default"},
    {LISTENER PASSWD SHARD "route { sources = oracle }",
     ":4: setting \"sources\" of route: found \"oracle\", expected redis, ldap, file, ring, "
     "default"},
    {LISTENER PASSWD SHARD "route { sources = {redis, ldap, redis} }",
     ":4: setting \"sources\" of route: \"redis\" is there twice"},
    {LISTENER PASSWD SHARD "route { sources = default }",
     ":4: route asks the source \"default\", but \"default_shard\" of route is not set"},
    {LISTENER PASSWD SHARD "route { sources = default\n default_shard = red }",
     ":4: setting \"default_shard\" of route: there is no shard \"red\""},
    {LISTENER PASSWD SHARD "route { sources = {redis, default, ldap}\n default_shard = blue }",
     ":4: setting \"sources\" of route: \"ldap\" is never asked, for \"default\" before it "
     "knows everybody"},
    {LISTENER PASSWD SHARD "route { sources = {redis, ring} }",
     ":4: route asks the source \"ring\", but there is no ring section"},
    {LISTENER PASSWD SHARD "route { sources = {ring, redis} }\nring new { }",
     ":4: setting \"sources\" of route: \"redis\" must stand before \"ring\", which writes "
     "there what it chooses"},
    {LISTENER PASSWD SHARD "route { sources = {redis, ring} }\nring new { }\n"
                           "ring odd {\n shards = {blue, red}\n}",
     ":6: setting \"shards\" of ring \"odd\": there is no shard \"red\""},
    {LISTENER PASSWD SHARD "route { sources = ldap\n snapshot = known }",
     ":4: \"snapshot\" of route is set, but the source \"redis\" is not asked"},
    {GOOD "shard s {\n address = h:1\n replica = s\n}\n",
     ":5: setting \"replica\" of shard \"s\": found \"s\", expected the title of another "
     "shard"},
    {GOOD "shard s { address = h:1 replica = red }\n",
     ":5: setting \"replica\" of shard \"s\": found \"red\", expected the title of another "
     "shard"},
    {GOOD "shard s { address = h:1 replica = blue }\nshard t { address = h:1 replica = s }\n",
     ":6: setting \"replica\" of shard \"t\": \"s\" has a replica itself"},
    {GOOD "shard s { address = h:1 probe_user = p }\n",
     ":5: shard \"s\": \"probe_password\" is not set, but the other one is"},
    {GOOD "shard s { address = h:1 probe_password = p }\n",
     ":5: shard \"s\": \"probe_user\" is not set, but the other one is"},
    {GOOD "health { rise = 0 }\n",
     ":5: setting \"rise\" of health: found \"0\", expected a number from 1 to 100"},
    {GOOD "shard s {\n address = h:1\n weight = 0\n}\n",
     ":7: setting \"weight\" of shard \"s\": found \"0\", expected a number from 1 to 1000"},
    {LISTENER PASSWD SHARD "route { sources = redis }\nredis { address = here }",
     ":5: setting \"address\" of redis: found \"here\", expected host:port or unix:/path"},
    {LISTENER PASSWD SHARD "route { sources = redis }\nredis { sentinels = { \"a:1\" } }",
     ":5: redis has \"sentinels\", but \"sentinel_master\" is not set"},
    {LISTENER PASSWD SHARD "route { sources = redis }\nredis { sentinel_master = routes }",
     ":5: redis has \"sentinel_master\", but \"sentinels\" is not set"},
    {LISTENER PASSWD SHARD "route { sources = redis }\n"
                           "redis { sentinel_master = x\nsentinels = { \"a:1\", \"b\" } }",
     ":5: setting \"sentinels\" of redis: found \"b\", expected host:port"},
    {GOOD "limits { shared = yes }\nredis { address = here }",
     ":6: setting \"address\" of redis: found \"here\", expected host:port or unix:/path"},
    {GOOD "throttle { shared = yes }\nredis { address = here }",
     ":6: setting \"address\" of redis: found \"here\", expected host:port or unix:/path"},
    {GOOD "limits { trusted = {10.0.0.0/8, ten} }",
     ":5: setting \"trusted\" of limits: found \"ten\", expected a network, as in "
     "192.0.2.0/24"},
    {GOOD "throttle { trusted = ten }",
     ":5: setting \"trusted\" of throttle: found \"ten\", expected a network, as in "
     "192.0.2.0/24"},
    {GOOD "limits { shared = yes }\nredis { prefix = \"" SIXTY_FOUR SIXTY_FOUR SIXTY_FOUR SIXTY_FOUR
          "\" }",
     ":6: setting \"prefix\" of redis: found 256 octets, expected at most 255"},
    {LISTENER PASSWD ROUTE, ": there is no shard section"},
    {GOOD "shard \"a b\" { address = h:1 }\n", ":5: found a shard \"a b\", expected a title of "
                                               "1 to 63 letters, digits, \".\", \"_\", \"-\""},
    {GOOD "shard s { address = {h:1, h} }\n",
     ":5: setting \"address\" of shard \"s\": found \"h\", expected host:port"},
    {GOOD "shard s {\n address = h:1\n source_address = {192.0.2.7, localhost}\n}\n",
     ":5: setting \"source_address\" of shard \"s\": found \"localhost\", expected a numeric "
     "address without port"},
    {GOOD "shard s { address = h:1 source_address = \"192.0.2.7:1\" }\n",
     ":5: setting \"source_address\" of shard \"s\": found \"192.0.2.7:1\", expected a numeric "
     "address without port"},
    {GOOD "shard s { address = h:1 source_address = {\"::1\", \"[::1]\"} }\n",
     ":5: setting \"source_address\" of shard \"s\": found \"[::1]\", expected a numeric "
     "address "
     "without port"},
    {GOOD "shard s { address = h:1 source_address = 192.0.2.0/24 }\n",
     ":5: setting \"source_address\" of shard \"s\": found \"192.0.2.0/24\", expected a "
     "numeric "
     "address without port"},
    {GOOD "shard s { address = h:1 source_address = {\"\"} }\n",
     ":5: setting \"source_address\" of shard \"s\": found \"\", expected a numeric address "
     "without "
     "port"},
    {GOOD "shard s { address = h:1 login = master_authzid master_user = m }\n",
     ":5: shard \"s\" logs in as a master, but \"master_password\" is not set"},
    {GOOD "shard s { address = h:1 login = master_authzid }\n",
     ":5: shard \"s\" logs in as a master, but \"master_user\" is not set"},
    {GOOD "shard s { address = h:1 passwordless_login = master_suffix }\n",
     ":5: shard \"s\" logs in as a master, but \"master_user\" is not set"},
    {GOOD "shard s { address = h:1 passwordless_login = master_authzid master_user = m }\n",
     ":5: shard \"s\" logs in as a master, but \"master_password\" is not set"},
    {GOOD "shard s { address = h:1 tls_ca_file = /nowhere }\n",
     ":5: setting \"tls_ca_file\" of shard: /nowhere: No such file or directory"},
};

static void what_is_said_of_bad_files(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
        struct err err;

        expect_error(bad_files[i].text, bad_files[i].error);
        struct conf *conf = open_text(GOOD, &err); /* nothing of a bad file lingers */
        assert_non_null(conf);
        conf_close(&conf);
    }
}

/* In a line of its own, with what else a section for tokens must have. */
#define OAUTH(more) GOOD "\noauth { issuer = i audience = a " more " }\n"

static void settings_for_tokens(void **state)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        {GOOD "oauth { keys = /dev/null audience = a }\n", ":5: \"issuer\" of oauth is not set"},
        {GOOD "oauth { keys = /dev/null issuer = a }\n", ":5: \"audience\" of oauth is not set"},
        {GOOD "oauth { issuer = a }\n", ":5: \"keys\" of oauth is not set"},
        {GOOD "oauth { audience = a }\n", ":5: \"keys\" of oauth is not set"},
        {OAUTH("keys = /dev/null user_claim = \"\""), ":6: \"user_claim\" of oauth is not set"},
        {OAUTH("keys = /dev/null algorithms = {RS256, HS256}"),
         ":6: setting \"algorithms\" of oauth: found \"HS256\", expected RS256, RS384, RS512, "
         "PS256, PS384, PS512, ES256, ES384, ES512 or EdDSA"},
        {OAUTH("keys = /dev/null algorithms = none"),
         ":6: setting \"algorithms\" of oauth: found \"none\", expected RS256, RS384, RS512, "
         "PS256, PS384, PS512, ES256, ES384, ES512 or EdDSA"},
        {OAUTH("keys = /nowhere"),
         ":6: setting \"keys\" of oauth: /nowhere: No such file or directory"},
        {OAUTH("keys = /tmp"), ":6: setting \"keys\" of oauth: /tmp: Is a directory"},
        {OAUTH("keys = \"https://i/\" keys_ca_file = /nowhere"),
         ":6: setting \"keys_ca_file\" of oauth: /nowhere: No such file or directory"},
        {OAUTH("keys = /dev/null leeway = 11m"),
         ":6: setting \"leeway\" of oauth: found \"11m\", expected a duration from 0 to 10m"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_error(cases[i].text, cases[i].error);
}

static void where_keys_for_tokens_may_be(void **state)
{
    static const char *const good[] = {
        "/dev/null",
        "https://i",
        "https://i.example:8443/keys?a=b#c",
        "https://[2001:db8::1]/keys",
        "http://127.0.0.1:8080/keys",
        "http://127.1.2.3",
        "http://[::1]:8080/",
        "http://localhost/keys",
    };
    static const char *const bad[] = {
        "keys.json",
        "http://i.example/keys",
        "http://128.0.0.1/keys",
        "http://[::2]/",
        "http://[::ffff:192.0.2.1]/",
        "http://localhost.example/",
        "http://127.0.0.1@i.example/keys",
        "http://127.0.0.1:80@i.example/keys",
        "http://127.0.0.1.example/",
        "http://127.0.0.1\\@i.example/",
        "http://i.example#@127.0.0.1/",
        "http:///keys",
        "https://",
        "https:///keys",
        "https://i.example:0/",
        "https://i.example:x/",
        "https://user:password@i.example/keys",
        "https://i.example/a b",
        "ftp://127.0.0.1/keys",
        "file:///dev/null",
        "HTTPS://i.example/",
    };
    char text[512], expected[512];
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        snprintf(text, sizeof text, OAUTH("keys = '%s'"), good[i]);
        struct conf *conf = open_text(text, &err);
        assert_string_equal(err.text, "");
        assert_string_equal(conf->oauth.keys, good[i]);
        conf_close(&conf);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, OAUTH("keys = '%s'"), bad[i]);
        snprintf(expected, sizeof expected,
                 ":6: setting \"keys\" of oauth: found \"%s\", expected an absolute path, or "
                 "https://host/..., or http://127.0.0.1/... and the like",
                 bad[i]);
        expect_error(text, expected);
    }
}

static void a_file_that_is_not_there(void **state)
{
    struct err err;

    (void)state;
    assert_null(conf_open("/nowhere/proxy.conf", &err));
    assert_int_equal(err.kind, ERR_CONFIG);
    assert_string_equal(err.text, "/nowhere/proxy.conf: No such file or directory");
    assert_null(conf_open("/tmp", &err));
    assert_string_equal(err.text, "/tmp: Is a directory");
    assert_null(conf_open("/nowhere/proxy.conf", NULL));
}

/* Takes away the "#" of hidden lines, and fills in what has no default. */
static void uncomment(FILE *in, FILE *out)
{
    char line[512];

    while (fgets(line, sizeof line, in) != NULL) {
        char *hash = line + strspn(line, " ");

        if (hash[0] == '#' && hash[1] != ' ')
            hash[0] = ' ';
        if (strstr(line, " address = {}") != NULL)
            fputs("address = 127.0.0.1:1\n", out);
        else if (strstr(line, " file = \"\"") != NULL || strstr(line, " chain = \"\"") != NULL)
            fputs(strstr(line, "chain") != NULL ? "chain = /dev/null\n" : "file = /dev/null\n",
                  out);
        else
            fputs(line, out);
    }
}

static void printed_defaults_are_a_valid_file(void **state)
{
    struct err err;
    FILE *sample = tmpfile(), *file = fopen(path_of("proxy.conf"), "w");

    (void)state;
    conf_print_defaults(sample);
    rewind(sample);
    uncomment(sample, file);
    fclose(sample);
    fclose(file);
    struct conf *conf = conf_open(path_of("proxy.conf"), &err);
    assert_string_equal(err.text, "");
    assert_non_null(conf);
    assert_int_not_equal(conf->ldap.line, 0);
    assert_string_equal(conf->shards[0].title, "name");
    conf_close(&conf);
}

/* Runs from the top of the tree, as `make unit` does. */
static void the_sample_is_valid(void **state)
{
    struct err err;

    (void)state;
    if (access("proxy.conf", R_OK) != 0)
        skip();
    struct conf *conf = conf_open("proxy.conf", &err);
    assert_string_equal(err.text, "");
    assert_non_null(conf);
    assert_int_equal(conf->listener_count, 1);
    conf_close(&conf);
}

static void printed_markdown_has_every_section(void **state)
{
    char page[65536];
    FILE *out = fmemopen(page, sizeof page, "w");

    (void)state;
    conf_print_markdown(out);
    assert_int_equal(fclose(out), 0);
#define IS_THERE(section, cardinality, rows, help)                                                 \
    assert_non_null(strstr(page, "\n## " #section "\n"));
    SETTINGS_SECTIONS(IS_THERE)
    assert_non_null(strstr(page, "| `level` | `info` | one of error, warning, info, debug |"));
}

/* The text of a configuration, in new memory. */
static char *printed(const struct conf *conf, const char *section, bool all)
{
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);

    assert_non_null(out);
    conf_print(out, conf, section, all);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void what_is_printed_reads_as_the_same(void **state)
{
    static const char odd[] =
        GOOD "process { workers = 3 stop_timeout = 90s }\n"
             "login { max_line = 16K greeting = 'a \"b\" \\\\ ${HOME} # //' }\n"
             "capability { policy = common remove = {\"A\", 'B \"'} }\n"
             "session { idle_notify = 1500ms }\n"
             "shard 'x-y' { address = store:143 tls = none tls_verify = no }\n";
    struct err err;
    char *text, *again;

    (void)state;
    for (int all = 0; all < 2; all++) {
        struct conf *conf = open_text(odd, &err);
        assert_string_equal(err.text, "");
        assert_non_null(conf);
        text = printed(conf, NULL, all);
        conf_close(&conf);
        conf = open_text(text, &err);
        assert_string_equal(err.text, "");
        again = printed(conf, NULL, all);
        assert_string_equal(text, again);
        assert_string_equal(conf->login.greeting, "a \"b\" \\ ${HOME} # //");
        assert_string_equal(conf->shards[1].title, "x-y");
        assert_string_equal(conf->capability.remove.items[1], "B \"");
        assert_int_equal(conf->session.idle_notify, 1500);
        assert_int_equal(strstr(text, "linger_timeout = 10s") != NULL, all);
        assert_int_equal(strstr(text, "forward_token = yes") != NULL, all);
        assert_non_null(strstr(text, "tls_verify = no"));
        conf_close(&conf);
        free(text);
        free(again);
    }
}

static void no_secret_is_printed(void **state)
{
    struct err err;
    struct conf *conf = open_text(
        GOOD "ldap { uri = {\"ldap://h\"} bind_dn = \"cn=x\" bind_password = \"s3cr3t\" }\n"
             "redis { password = \"s3cr3t\" }\n",
        &err);

    (void)state;
    assert_string_equal(err.text, "");
    char *text = printed(conf, NULL, true), *one = printed(conf, "redis", false);
    assert_null(strstr(text, "s3cr3t"));
    assert_string_equal(one, "redis {\n    password = \"********\"\n}\n");
    assert_true(conf_has_section("redis") && !conf_has_section("rediss"));
    conf_close(&conf);
    free(text);
    free(one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_apply),
        cmocka_unit_test(durations_by_themselves),
        cmocka_unit_test(values_of_every_kind),
        cmocka_unit_test(paths_start_from_the_folder_of_the_file),
        cmocka_unit_test(includes),
        cmocka_unit_test(what_is_said_of_bad_files),
        cmocka_unit_test(settings_for_tokens),
        cmocka_unit_test(where_keys_for_tokens_may_be),
        cmocka_unit_test(a_file_that_is_not_there),
        cmocka_unit_test(printed_defaults_are_a_valid_file),
        cmocka_unit_test(the_sample_is_valid),
        cmocka_unit_test(what_is_printed_reads_as_the_same),
        cmocka_unit_test(no_secret_is_printed),
        cmocka_unit_test(printed_markdown_has_every_section),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
